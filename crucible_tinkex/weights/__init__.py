"""What a sweep leaves behind, put to use: export, chat, and keeping of its checkpoints."""
