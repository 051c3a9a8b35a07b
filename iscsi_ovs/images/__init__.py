"""Disk images: volumes as files of other programs, out and in. The formats know no sockets and no volume server."""
