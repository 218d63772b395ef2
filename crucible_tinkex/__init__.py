"""Parallel, crash-safe LoRA experiments over the Tinker API."""
