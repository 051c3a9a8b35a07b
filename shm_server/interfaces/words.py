"""Memory that another process looks at while we change it, by a system call.

A guest's memory may be shrunk under us by its VMM: a store of ours to a lost page would be a SIGBUS. pwrite(2) never
is, but it copies byte by byte where the kernel likes to, and a guest that looks at an index in between sees one that
never was. FUTEX_WAKE_OP of futex(2) does both right: it adds to a 32-bit word in one locked instruction, which is a
full fence, too, and says EFAULT where the page is not there. ``write`` is for what has no order to keep, in memory
whose file has no write(2): process_vm_writev(2), on ourselves.
"""

from __future__ import annotations

import ctypes
import errno
import os

_SYS_FUTEX = 202  # x86-64, the only machine that the server runs on (abi/segment.py)
_FUTEX_WAKE_OP_PRIVATE = 5 | 128
_OP_ADD_SHIFTED = 9 << 28  # FUTEX_OP_ADD | FUTEX_OP_OPARG_SHIFT: add 1 << oparg
_OPARG_SHIFT = 12


class _Piece(ctypes.Structure):
    """struct iovec."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


# PyDLL keeps the GIL: the call does not block.
_libc = ctypes.PyDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_libc.process_vm_writev.restype = ctypes.c_ssize_t
_libc.process_vm_writev.argtypes = (
    ctypes.c_int, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_void_p, ctypes.c_ulong, ctypes.c_ulong,
)  # fmt: skip
_nobody = ctypes.c_uint32()  # the futex that is woken: nobody sleeps there
_FIXED = (
    ctypes.c_long(_SYS_FUTEX), ctypes.c_void_p(ctypes.addressof(_nobody)), ctypes.c_int(_FUTEX_WAKE_OP_PRIVATE),
    ctypes.c_int(0), ctypes.c_long(0),
)  # fmt: skip
_ADD = tuple(ctypes.c_uint(_OP_ADD_SHIFTED | bit << _OPARG_SHIFT) for bit in range(32))


def add(address: int, bit: int) -> None:
    """Add ``1 << bit`` to the aligned 32-bit word at ``address``, atomically; a full fence. Raises OSError(EFAULT)."""
    if _syscall(*_FIXED, ctypes.c_void_p(address), _ADD[bit]) < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"a word of guest memory: {os.strerror(number)}")


def write(address: int, data: bytes) -> None:
    """Copy ``data`` to ``address``. Raises OSError(EFAULT)."""
    source = _Piece(ctypes.cast(ctypes.c_char_p(data), ctypes.c_void_p), len(data))
    target = _Piece(address, len(data))
    done = _libc.process_vm_writev(os.getpid(), ctypes.byref(source), 1, ctypes.byref(target), 1, 0)
    if done != len(data):
        number = ctypes.get_errno() if done < 0 else errno.EFAULT
        raise OSError(number, f"guest memory: {os.strerror(number)}")


def address_of(mapping: object) -> int:
    """Where a writable mapping begins."""
    return ctypes.addressof(ctypes.c_char.from_buffer(mapping))  # type: ignore[arg-type]
