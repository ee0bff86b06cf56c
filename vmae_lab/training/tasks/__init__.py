"""Tasks that can be trained, one per file: settings, model, batches and loss."""
