"""What is on disk: the database and its migrations, keys, the data folder, kept answers."""
