"""From a folder of pictures to a run's folder: the fit, its loop, its checkpoints."""
