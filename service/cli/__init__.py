"""The commands of `gaitid`, one module a noun.

`running`, `keys`, `encryption`, `gallery_files`, `model_changes` and `checkpoints` work on this
machine's files; all others ask a running service through `service.client`. Modules import at their
top what is light, and in the commands what is not, so that `gaitid --help` answers at once.
"""
