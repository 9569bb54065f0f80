"""How alike walks are, which are nearest, and which checkpoint finds people better."""
