"""Doors inside the server: interfaces whose point is that the server itself reaches the client's memory."""
