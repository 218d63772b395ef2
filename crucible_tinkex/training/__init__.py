"""One trial: what it is, how it learns, and the live session that trains it. Knows no scheduler."""
