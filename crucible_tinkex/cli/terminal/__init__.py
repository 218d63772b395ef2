"""What people read on a terminal: tables, sentences, progress."""
