"""Which files were written by somebody else: inotify(7), by ctypes, asked and never waited for.

An event stands in the queue before the write that it tells of returns. So whoever looks behind the arrival of a request
hears of every write that ended before the request was made.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import struct
from collections.abc import Callable
from pathlib import Path

_MODIFY = 0x02
_OVERFLOW = 0x4000
_EVENT = struct.Struct("=iIII")  # watch, mask, cookie, bytes of the name behind it
_BUFFER_BYTES = 1 << 16
_MAX_READS = 64  # for one look; where there is still more it may be any file

_libc = ctypes.CDLL(None, use_errno=True)
_libc.inotify_add_watch.argtypes = (ctypes.c_int, ctypes.c_char_p, ctypes.c_uint32)


class Watch:
    """``look()`` belongs to one thread; files may be added from any."""

    def __init__(self, modified: Callable[[int | None], None]) -> None:
        """``modified`` gets what add() returned, or None: there were too many events, it may be any of them. OSError:
        the machine has no more of these."""
        self._modified = modified
        self._fd = _libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self._fd < 0:
            raise _failed("inotify_init1")
        self._epoll = select.epoll()
        self._epoll.register(self._fd, select.EPOLLIN)
        self._poll = self._epoll.poll  # bound once: it is asked before each batch

    def add(self, path: Path) -> int:
        """Tell of this file from now on."""
        watch: int = _libc.inotify_add_watch(self._fd, os.fsencode(path), _MODIFY)
        if watch < 0:
            raise _failed(f"inotify_add_watch: {path}")
        return watch

    def remove(self, watch: int) -> None:
        """A file that is no more has taken its watch along."""
        _libc.inotify_rm_watch(self._fd, watch)

    def look(self) -> None:
        """Call ``modified`` for what was written since."""
        if not self._poll(0):  # half of what FIONREAD costs
            return
        modified: set[int | None] = set()
        for _ in range(_MAX_READS):
            events = os.read(self._fd, _BUFFER_BYTES)
            self._collect(events, modified)
            if not self._poll(0):
                break
        else:
            modified.add(None)
        for each in modified:
            self._modified(each)

    def _collect(self, events: bytes, modified: set[int | None]) -> None:
        at = 0
        while at < len(events):
            watch, mask, _, length = _EVENT.unpack_from(events, at)
            at += _EVENT.size + length
            if mask & _OVERFLOW:
                modified.add(None)
            elif mask & _MODIFY:
                modified.add(watch)

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        if self._fd >= 0:
            self._epoll.close()
            os.close(self._fd)
            self._fd = -1


def _failed(what: str) -> OSError:
    number = ctypes.get_errno() or errno.EIO
    return OSError(number, f"{what}: {os.strerror(number)}")
