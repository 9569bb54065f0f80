"""The models: known by name, loaded, active in a gallery, and the threshold that decides."""
