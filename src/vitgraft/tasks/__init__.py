"""One file per visual task."""
