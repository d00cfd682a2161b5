"""Pure functions of run.json. Imports neither torch nor transformers."""
