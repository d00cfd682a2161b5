"""Speed and memory of Holdfast against its peers: ``python -m benchmarks``."""
