"""The engine of the course kit: data, batches, recipes, layers, runs and figures. The story can be followed without it."""
