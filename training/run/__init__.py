"""A run: its networks and data, its steps, its state."""
