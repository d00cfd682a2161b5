"""The only floor that knows architectures: layers by name, low-rank deltas, captures."""
