"""The mount itself: libfuse behind mfusepy, the process that serves it, and its end.

``mount`` starts that process and returns when the kernel has the directory; ``serve`` is the process. libfuse calls
back on a few threads of its own, and ends at fusermount3 -u, SIGTERM or SIGINT. mfusepy (the extra "fuse") and
libfuse3 (Debian: fuse3) are asked for when they are used, and their absence is a sentence.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import logging.handlers
import os
import select
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from iscsi_ovs.errors import ConfigurationError, Error
from iscsi_ovs.interfaces.fuse import VolumeDirectory
from iscsi_ovs.interfaces.lanes import LANES_MAX, PATIENCE_S, THREADS_MAX, Lanes

logger = logging.getLogger("iscsi_ovs.fuse")

FILE_SYSTEM = "iscsi-ovs"  # the mount table says fuse.iscsi-ovs
MOUNT_LIMIT_S = 40.0
# How long Linux may keep names and sizes: others grow and remove volumes, too.
ATTRIBUTES_S = 0.1
RENAME_NOREPLACE = 1  # linux/fs.h; nothing is replaced in any case
_READY = b"ready\n"
_ENDED_BY_SIGNAL = 8  # what fuse_main returns then


class MountError(Error):
    """A directory could not be mounted or unmounted."""


def load() -> Any:
    """mfusepy, or the sentence that says what to install."""
    try:
        import mfusepy
    except ImportError:
        raise MountError("mfusepy is not there: pip install 'iscsi-ovs[fuse]'") from None
    except (OSError, AttributeError):
        raise MountError("libfuse is not there: apt install fuse3") from None
    if mfusepy.fuse_version_major < 3:
        raise MountError("libfuse 3 is needed: apt install fuse3")
    return mfusepy


def check(directory: Path) -> Path:
    """The directory's real path; a reason why it can't be mounted on is an exception, EBUSY that it is already."""
    load()
    if not os.path.exists("/dev/fuse"):
        raise MountError("there is no /dev/fuse: modprobe fuse, or give the container that device")
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is not there: apt install fuse3")
    if is_mounted(_point(directory)):  # first: one whose process is dead can't be asked for anything
        raise OSError(errno.EBUSY, f"{directory} is mounted already")
    real = directory.resolve(strict=True)
    if not real.is_dir():
        raise ConfigurationError(f"{directory} is no directory")
    with os.scandir(real) as entries:
        if next(entries, None) is not None:  # Linux would hide it, and so it would /proc for root
            raise ConfigurationError(f"{directory} is not empty, and what is in it would be hidden: choose another")
    return real


def mount(directory: Path, socket_path: Path) -> None:
    """Start the process that serves ``directory``, and return when it is mounted."""
    reader, writer = os.pipe()
    command = [sys.executable, "-m", "iscsi_ovs", "mount", str(directory), "--foreground"]
    try:
        process = subprocess.Popen(
            [*command, "--socket", str(socket_path), "--ready-fd", str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            pass_fds=[writer],
            start_new_session=True,
        )
    finally:
        os.close(writer)
    with open(reader, "rb", buffering=0) as ready:
        if not select.select([ready], [], [], MOUNT_LIMIT_S)[0]:
            process.kill()
            process.wait()
            raise MountError(f"{directory} was not mounted within {MOUNT_LIMIT_S:g} s")
        if ready.read(len(_READY)) != _READY:
            process.wait()
            raise MountError(f"{directory} was not mounted; the reason stands above")
    process.returncode = 0  # it lives on without us: no ResourceWarning


def serve(directory: Path, socket_path: Path, ready_fd: int | None, patience_s: float = PATIENCE_S) -> None:
    """Serve ``directory`` until it is unmounted. OSError: no volume server."""
    mfusepy = load()
    lanes = Lanes(socket_path, f"fuse mount {directory} pid {os.getpid()}", patience_s)
    lanes.start()

    def mounted() -> None:
        if ready_fd is not None:
            _leave_the_caller()
            os.write(ready_fd, _READY)
            os.close(ready_fd)
        logger.info("%s is mounted", directory)

    try:
        _binding(mfusepy)(
            VolumeDirectory(lanes, mounted),
            str(directory),
            foreground=True,
            fsname="volumes",
            subtype=FILE_SYSTEM,
            **_threads(mfusepy),
            attr_timeout=ATTRIBUTES_S,
            entry_timeout=ATTRIBUTES_S,
            hard_remove=True,
        )
    except RuntimeError as error:
        if error.args != (_ENDED_BY_SIGNAL,):  # libfuse's own words are on standard error
            raise MountError(f"{directory}: libfuse ended with {error}") from None
    finally:
        lanes.close()
    logger.info("%s is not mounted any more", directory)


def _threads(mfusepy: Any) -> dict[str, int]:
    """How many may call back at a time, in the words of this libfuse."""
    if (mfusepy.fuse_version_major, mfusepy.fuse_version_minor) >= (3, 12):
        # Without the second, libfuse 3.14 says on standard error that its own default is invalid.
        return {"max_threads": THREADS_MAX, "max_idle_threads": THREADS_MAX}
    return {"max_idle_threads": LANES_MAX - 2}


def _leave_the_caller() -> None:
    """From now on nobody reads what we say but the system's log."""
    root = logging.getLogger()
    root.handlers.clear()
    if os.path.exists("/dev/log"):
        with contextlib.suppress(OSError):
            handler = logging.handlers.SysLogHandler("/dev/log")
            handler.setFormatter(logging.Formatter(f"iscsi-ovs-mount[{os.getpid()}]: %(message)s"))
            root.addHandler(handler)
    if not root.handlers:
        root.addHandler(logging.NullHandler())
    nowhere = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    os.close(nowhere)
    os.chdir("/")


def _binding(mfusepy: Any) -> Callable[..., Any]:
    """mfusepy's FUSE, but READ and WRITE hand the kernel's memory through instead of making bytes of it, ftruncate its
    file's number (mfusepy passes the path alone, which an open file comes without), and renameat2 is not rename.
    """

    threads: set[int] = set()
    keep_thread_state = ctypes.pythonapi.PyGILState_Ensure

    class Binding(mfusepy.FUSE):  # type: ignore[misc]
        def _wrapper(self, operation: Callable[..., int | None], *arguments: Any) -> int:
            """Every call of libfuse's comes through here."""
            if (thread := threading.get_ident()) not in threads:
                # ctypes makes a thread state for each call on a thread that Python does not know, and drops it behind
                # the call: a third of a small READ. One that is ensured once more stays for the next call.
                threads.add(thread)
                keep_thread_state()
            try:
                return operation(*arguments) or 0
            except OSError as error:
                return -(error.errno or errno.EIO)
            except Exception:
                logger.exception("a mistake of ours")
                return -errno.EIO

        def rename_fuse_3(self, old: bytes, new: bytes, flags: int) -> int:
            if flags & ~RENAME_NOREPLACE:
                raise OSError(errno.EINVAL, "files can't be exchanged")
            renamed: int = self.rename_fuse_2(old, new)
            return renamed

        def read(self, path: bytes | None, buffer: Any, size: int, offset: int, information: Any) -> int:
            done: int = self.operations.read(buffer, size, offset, information.contents.fh)
            return done

        def write(self, path: bytes | None, buffer: Any, size: int, offset: int, information: Any) -> int:
            done: int = self.operations.write(buffer, size, offset, information.contents.fh)
            return done

        def truncate_fuse_3(self, path: bytes | None, length: int, information: Any) -> int:
            number = information.contents.fh if information else None
            self.operations.truncate(None if path is None else os.fsdecode(path), length, number)
            return 0

    return Binding


# The mount table ----------------------------------------------------------------------------------------------------


def is_mounted(directory: Path) -> bool:
    """Whether one of ours is mounted there; also one whose process is dead."""
    return str(directory) in _mounts()


def _mounts() -> set[str]:
    """Mount points of type fuse.iscsi-ovs. proc(5): field 5 is the mount point, the type follows " - "."""
    found = set()
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        if rest.split(" ", 1)[0] == f"fuse.{FILE_SYSTEM}":
            point = fields.split(" ")[4]
            for escape, character in ((r"\040", " "), (r"\011", "\t"), (r"\012", "\n"), (r"\134", "\\")):
                point = point.replace(escape, character)
            found.add(point)
    return found


def _point(directory: Path) -> Path:
    """The name that the mount table has for it. Not resolve(): that asks the mount, whose process may be dead."""
    point = Path(os.path.abspath(directory))
    with contextlib.suppress(OSError):
        if not point.is_symlink():
            return point.parent.resolve() / point.name
        return point.resolve()
    return point


def unmount(directory: Path) -> None:
    """End a mount. ENOENT: there is none; EBUSY: files are open on it. Its process ends by itself."""
    point = _point(directory)
    if not is_mounted(point):
        raise OSError(errno.ENOENT, f"{directory} is no mount of volumes")
    program = shutil.which("fusermount3")
    if program is None:
        raise MountError("fusermount3 is not there: apt install fuse3")
    done = subprocess.run([program, "-u", "--", str(point)], capture_output=True, text=True, check=False)
    if done.returncode:
        words = done.stderr.strip()
        if "busy" in words.lower():
            raise OSError(errno.EBUSY, f"{directory} is in use: files on it are open")
        raise MountError(words or f"fusermount3 ended with code {done.returncode}")
