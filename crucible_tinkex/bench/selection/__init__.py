"""Choosing the best of many configurations, and saying how sure that is."""
