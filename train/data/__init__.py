"""From what the user has to batches on the device."""
