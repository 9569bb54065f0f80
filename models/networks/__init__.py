"""One file per architecture, on shared blocks."""
