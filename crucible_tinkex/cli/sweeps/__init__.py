"""Behind the commands that begin, run and steer sweeps."""
