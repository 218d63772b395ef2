"""The search space, its dimensions, and points drawn from it."""
