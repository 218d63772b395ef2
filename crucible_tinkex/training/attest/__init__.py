"""Whether a service applies what a sweep asks of it, proved by models of two steps."""
