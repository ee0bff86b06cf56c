"""What can be trained, one file each: settings, model, batches and loss."""
