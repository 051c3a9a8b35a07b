"""The only sockets and clocks of the package: an epoll loop, portals, time."""
