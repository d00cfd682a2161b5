"""Errors, configuration, registries, results and files. Torch-free, except for `runtime`."""
