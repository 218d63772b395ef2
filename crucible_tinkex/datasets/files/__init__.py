"""Rows out of files: what holds them (`containers`), how they are written (`formats`, `published`),
where they lie (`remote`), and all of them together (`source`)."""
