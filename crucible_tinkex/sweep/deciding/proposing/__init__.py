"""Where new trials come from, and what was tried."""
