"""What a sweep asks of its trials, and where and how wide it runs."""
