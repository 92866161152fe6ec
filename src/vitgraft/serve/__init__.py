"""Many tasks on one backbone: a bank of adapters, and a server in front of it."""
