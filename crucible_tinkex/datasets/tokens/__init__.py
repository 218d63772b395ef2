"""From text to token ids: the tokenizer, and data sets in its tokens."""
