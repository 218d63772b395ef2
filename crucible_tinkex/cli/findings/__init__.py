"""Behind the commands that look at what sweeps found."""
