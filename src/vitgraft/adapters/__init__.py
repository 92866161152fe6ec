"""What a fit leaves: the adapter file, the run's folder, predictions, merging, checkpoints of the authors' code."""
