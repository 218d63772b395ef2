"""One attempt of a trial: its live session and what that session needs."""
