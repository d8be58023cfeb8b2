"""A soak test: random operations on all objects, under signals and from several threads."""
