"""A live session that is driven call by call: what adapter and harness train through."""
