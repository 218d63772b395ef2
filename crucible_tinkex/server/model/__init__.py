"""The model: a frozen base with many LoRA adapters in one pass."""
