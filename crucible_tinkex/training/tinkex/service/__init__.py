"""What an adapter's session holds on the service, and where its events go."""
