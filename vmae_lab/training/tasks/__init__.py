"""What is trained, one file per task: settings, batches, loss."""
