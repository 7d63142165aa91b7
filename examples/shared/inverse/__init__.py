"""The tasks and methods of inverse.py, and the figures of their answers."""
