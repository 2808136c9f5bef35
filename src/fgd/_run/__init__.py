"""A run: a step, its repetition, many of them. Pure functions, compiled."""
