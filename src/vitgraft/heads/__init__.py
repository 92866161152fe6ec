"""What turns features into losses and predictions. One file per task; a head knows nothing of methods."""
