"""What a sweep found: rankings, conclusions, tables and views of its state."""
