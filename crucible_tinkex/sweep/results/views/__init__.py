"""A sweep's state as people, pages and SQL see it."""
