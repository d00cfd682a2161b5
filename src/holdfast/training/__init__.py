"""One loop, any objective, any constraint."""
