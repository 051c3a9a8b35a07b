"""Other interfaces on the client library, each its own process."""
