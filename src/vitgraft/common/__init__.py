"""The ground: errors, files, settings, progress, classes found by their files' names. Knows no picture and no model."""
