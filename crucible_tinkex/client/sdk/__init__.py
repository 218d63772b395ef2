"""The official SDK behind the same interface."""
