"""What a front end hands over, looked at before anything is done with it: is it what the message needs?

Whatever asks the file itself might wait for ever, as fstat(2), epoll and close(2) of a file on FUSE do where nobody
answers. The kernel's own words for a descriptor do not, nor does fcntl(2): only memory has seals.
"""

from __future__ import annotations

import fcntl
from collections.abc import Sequence

from shm_server import eventfds
from shm_server.interfaces.messages import SHAPES, Kind, ProtocolError, Request


def check(request: Request, descriptors: Sequence[int], *, is_trusted: bool) -> None:
    """As many as there may be with a request, and of its kind. ``is_trusted``: they are of our own user's process."""
    shape = SHAPES[request]
    if len(descriptors) > shape.descriptors:
        raise ProtocolError(f"{request.name} with {len(descriptors)} descriptors, at most {shape.descriptors}")
    for fd in descriptors:
        assert shape.kind is not None
        if not _is(shape.kind, fd, is_trusted):
            raise ProtocolError(f"{request.name} with a descriptor that is not {shape.kind.value}")


def _is(kind: Kind, fd: int, is_trusted: bool) -> bool:
    if kind is Kind.MEMORY:  # a memfd, or a file on tmpfs or hugetlbfs
        try:
            fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        except OSError:
            return False
        return True
    found = eventfds.kind(fd)
    if kind is Kind.CHANNEL:
        return found == "socket"
    return found == "eventfd" or (found in ("pipe", "socket") and kind is Kind.CALL and is_trusted)
