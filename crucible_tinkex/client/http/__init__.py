"""One call to the service: address, key, connections, pace, retries, encodings."""
