"""A run as a file: steps, checked before anything loads."""
