"""The engine of the course kit: the story can be followed without it."""
