"""A whole gallery as one file, out and in."""
