"""The embedded Tinker-compatible server: a frozen base, many LoRA adapters, one engine thread."""
