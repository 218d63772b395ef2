"""A service session: made, kept alive, its numbered operations and their results."""
