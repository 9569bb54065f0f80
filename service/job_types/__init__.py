"""What a job of each type does."""
