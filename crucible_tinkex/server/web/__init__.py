"""The HTTP face of the server: process, routes, bodies, encodings."""
