"""Tasks, judges, intervals, the sandbox."""
