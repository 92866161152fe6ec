"""What every method is held to, for those of the package and for one's own: `python -m vitgraft.testing FILE`."""
