"""Eventfds that a process of another user has, too, rung so that nothing it does to them makes us wait.

O_NONBLOCK belongs to the open file that both share: whoever has it can clear the flag and fill the counter, and then
write(2) waits until somebody reads. The kernel itself signals eventfds without waiting, for whoever asked for that with
an asynchronous I/O request: io_submit(2), IOCB_FLAG_RESFD. So here one is submitted that reads no bytes and ends at
once. It costs 2 µs more than the write, so it is not for processes of our own user, which need no tricks to stop us.
``kind`` says what somebody's descriptor is without asking the file itself.
"""

from __future__ import annotations

import ctypes
import logging
import os

from shm_server.abi.doorbell import Doorbell

log = logging.getLogger(__name__)

_IO_SETUP, _IO_SUBMIT = 206, 209  # x86-64, the only machine that the server runs on (abi/segment.py)
_IOCB_CMD_PREAD, _IOCB_FLAG_RESFD = 0, 1
_QUEUE = 64
_HEAD, _TAIL = 2, 3  # words of struct aio_ring, which the kernel maps into our memory

# PyDLL keeps the GIL: the call does not block.
_syscall = ctypes.PyDLL(None, use_errno=True).syscall
_syscall.restype = ctypes.c_long


class _Request(ctypes.Structure):
    """struct iocb."""

    _fields_ = (
        ("data", ctypes.c_uint64), ("key", ctypes.c_uint32), ("rw_flags", ctypes.c_uint32),
        ("opcode", ctypes.c_uint16), ("priority", ctypes.c_int16), ("fildes", ctypes.c_uint32),
        ("buffer", ctypes.c_uint64), ("nbytes", ctypes.c_uint64), ("offset", ctypes.c_int64),
        ("reserved", ctypes.c_uint64), ("flags", ctypes.c_uint32), ("resfd", ctypes.c_uint32),
    )  # fmt: skip


class Signaller:
    """One queue of requests, for one thread."""

    def __init__(self) -> None:
        """OSError where the machine has no asynchronous I/O for us."""
        self._file = os.memfd_create("ovs-signals", os.MFD_CLOEXEC)
        context = ctypes.c_ulong(0)
        if _syscall(ctypes.c_long(_IO_SETUP), ctypes.c_uint(_QUEUE), ctypes.byref(context)) < 0:
            number = ctypes.get_errno()
            os.close(self._file)
            raise OSError(number, f"no asynchronous I/O: {os.strerror(number)}")
        self._request = _Request(opcode=_IOCB_CMD_PREAD, fildes=self._file, flags=_IOCB_FLAG_RESFD)
        self._requests = (ctypes.c_void_p * 1)(ctypes.addressof(self._request))
        self._arguments = (ctypes.c_long(_IO_SUBMIT), context, ctypes.c_long(1), self._requests)
        self._ring = (ctypes.c_uint32 * 4).from_address(context.value)

    def signal(self, fd: int) -> None:
        """Add 1 to an eventfd. OSError EINVAL: it is none."""
        self._request.resfd = fd
        done = _syscall(*self._arguments)
        self._ring[_HEAD] = self._ring[_TAIL]  # nobody asks how it went
        if done != 1:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


class _Shared:
    """The one of this process, made when it is needed first."""

    signaller: Signaller | None = None
    is_missing = False


def signal(fd: int) -> None:
    """Signaller.signal, or a plain write where the machine has nothing better."""
    if _Shared.signaller is None and not _Shared.is_missing:
        try:
            _Shared.signaller = Signaller()
        except OSError as error:
            _Shared.is_missing = True
            log.warning("other users' processes can hold us up: %s", error.strerror)
    if _Shared.signaller is not None:
        _Shared.signaller.signal(fd)
    else:
        os.eventfd_write(fd, 1)


class GuardedDoorbell(Doorbell):
    """For a client of another user."""

    def ring(self) -> None:
        try:
            signal(self._fd)
        except BlockingIOError:
            pass


def kind(fd: int) -> str:
    """ "eventfd", "pipe", "socket", or "" for anything else."""
    link = os.readlink(f"/proc/self/fd/{fd}")
    if link == "anon_inode:[eventfd]":
        return "eventfd"
    found, _, _ = link.partition(":[")
    return found if found in ("pipe", "socket") else ""
