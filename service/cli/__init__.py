"""The commands of `gaitid`, one module for each noun.

`keys`, `encryption`, `gallery_files` and `checkpoints` work on this machine's files; all others ask
a running service through `service.client`. What is heavy is imported in the functions that need it,
so that `gaitid --help` answers at once.
"""
