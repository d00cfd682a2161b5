"""The embedded world: seeded generators, one file a family, splits disjoint by thing and by template."""
