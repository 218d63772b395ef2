"""Commands on what a sweep leaves behind: models, export, chat, checkpoints.

Each module imports what it needs when its command runs, so that `crucible --help` answers at once.
"""
