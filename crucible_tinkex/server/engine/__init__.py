"""The engine: one thread that trains and samples with all adapters of a base."""
