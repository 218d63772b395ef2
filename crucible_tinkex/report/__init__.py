"""What people look at when a sweep has ended, or while it runs: one HTML page without a network."""
