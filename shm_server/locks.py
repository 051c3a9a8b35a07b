"""One server on a pool, one server on a socket: lock files held by flock, which die with the process.

The pid of the holder stands in the file, so that the second server can name the first.
"""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import stat
from pathlib import Path

MAX_SOCKET_PATH_BYTES = 107  # sockaddr_un.sun_path, less its zero


class FileLock:
    """Held from construction to close(). Raises OSError EBUSY with words that name the holder's pid."""

    def __init__(self, path: Path, what: str) -> None:
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(self._fd, 32, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(self._fd)
            raise OSError(errno.EBUSY, f"{what} is served by another shm-server already, pid {holder}") from None
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """The file stays: unlinking it would let two servers lock two files of one name."""
        os.close(self._fd)


def listen(path: Path, *, is_public: bool) -> socket.socket:
    """A listening Unix socket at ``path``, whose lock we hold; that of a dead server is taken over."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise OSError(
            errno.ENAMETOOLONG,
            f"socket path {path} has {len(os.fsencode(path))} bytes, a Unix socket's has at most "
            f"{MAX_SOCKET_PATH_BYTES}: choose a shorter one",
        )
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(os.fspath(path))
        os.chmod(path, 0o666 if is_public else 0o600)  # who it is, SO_PEERCRED says
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"no socket at {path}: {error.strerror}") from None
    return listener


def _clear(path: Path) -> None:
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, f"{path} exists and is not a socket")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            pass
        except OSError as error:
            raise OSError(errno.EADDRINUSE, f"{path} can't be taken over: {error}") from None
        else:
            raise OSError(errno.EADDRINUSE, f"somebody is listening on {path} already")
    path.unlink(missing_ok=True)
