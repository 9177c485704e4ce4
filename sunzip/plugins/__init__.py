"""sunzip inside other programs."""
