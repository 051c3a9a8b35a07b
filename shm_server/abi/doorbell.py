"""An eventfd that one side rings and the other waits on: only when the sleeper has said that it sleeps."""

from __future__ import annotations

import os


class Doorbell:
    """One direction. Pollable by ``fileno()``; ringing never blocks, clearing never blocks."""

    def __init__(self, fd: int | None = None) -> None:
        self._fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC) if fd is None else fd

    def fileno(self) -> int:
        return self._fd

    def ring(self) -> None:
        """Wake the other side. A full counter (a peer that scribbled on it) is as good as a ring."""
        try:
            os.eventfd_write(self._fd, 1)
        except BlockingIOError:
            pass

    def clear(self) -> None:
        """Forget rings so far."""
        try:
            os.eventfd_read(self._fd)
        except BlockingIOError:
            pass

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
