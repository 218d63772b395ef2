"""What is known, checked and written down before a sweep runs."""
