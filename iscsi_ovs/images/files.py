"""Files that images are read from and written to: under a name of their own until they are whole and durable."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from iscsi_ovs.images.image import ImageError


@contextlib.contextmanager
def source(path: Path) -> Iterator[tuple[int, int]]:
    """Descriptor and size of a file or block device, for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # a pipe would have us wait
    try:
        mode = os.fstat(fd).st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISBLK(mode):
            raise ImageError(f"{path} is no file and no disk")
        yield fd, os.lseek(fd, 0, os.SEEK_END)
    finally:
        os.close(fd)


@contextlib.contextmanager
def destination(path: Path, *, may_replace: bool) -> Iterator[int]:
    """A descriptor to write to; when the block ends well the file is durable and called ``path``, else it is gone.

    EEXIST: something is there, and ``may_replace`` is not said, or it is no file. Only its owner can read it.
    """
    check_destination(path, may_replace=may_replace)
    directory = path.parent
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".part", dir=directory)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from None
    try:
        try:
            yield fd
            os.fsync(fd)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None:
                raise OSError(error.errno, f"{os.strerror(error.errno)}; nothing of it is kept", str(path)) from None
            raise
        finally:
            os.close(fd)
        if may_replace:
            os.replace(temporary, path)
        else:
            _link(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync(directory)


def check_destination(path: Path, *, may_replace: bool) -> None:
    """The same errors, before anything is begun; and ENOENT where there is no such directory."""
    if not path.parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "there is no such directory", str(path.parent))
    if path.exists() and not path.is_file():
        raise OSError(errno.EEXIST, "it is there, and no file", str(path))
    if not may_replace and os.path.lexists(path):
        raise OSError(errno.EEXIST, "it is there already: --yes replaces it", str(path))


def _link(temporary: str, path: Path) -> None:
    """rename(2) would replace what came there meanwhile; not every file system has links."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        check_destination(path, may_replace=False)
        raise
    except OSError:
        check_destination(path, may_replace=False)
        os.replace(temporary, path)
    else:
        os.unlink(temporary)


def _sync(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
