"""Sizes that work is done in, where an estimate of that work counts with them too. Torch-free."""

GRADIENT_ROWS = 16
"""Rows of one forward and backward that takes the gradient of each row."""
