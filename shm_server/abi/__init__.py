"""All that a client may know of the volume server: layouts, rings, segments, doorbells, control messages.

This package is to shm_server what the uapi headers are to a kernel. It imports nothing else of the server, and is the
only part of the server that a client imports. Version 1; both sides refuse another version by number.
"""
