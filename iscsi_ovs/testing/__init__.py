"""Tools for tests, ours and our users': an initiator without a socket, devices, faults."""
