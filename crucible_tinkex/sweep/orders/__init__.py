"""What people tell a sweep from elsewhere, and how it is obeyed."""
