"""Several adapters of one base model become one, or one is repaired."""
