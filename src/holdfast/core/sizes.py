"""Sizes that work is done in, and that an estimate of that work counts with. Torch-free."""

FLOAT_BYTES, DOUBLE_BYTES = 4, 8
GRADIENT_ROWS = 16
"""Rows of one forward and backward that takes the gradient of each row."""
PLANNING_ROWS = 8
"""Rows of one forward while an objective is planned."""
VERIFY_ROWS = 16
"""Prompts that a verification decodes together."""
ROW_TOKENS = 256
"""Tokens a row is taken to have before anything reads it."""
