"""errno ↔ block.Error, once each way.

The server answers each ring entry with a Linux errno (its stores raise them, its dispatch maps them once). The block
port speaks of block.Error, because a SCSI command set must not know errnos; the library's callers expect the errnos
that Open vStorage's manual promises. An EIO says more when one knows what was asked: a read that failed, a write, or
a flush after which the fate of earlier writes is open (CONTRACTS 1).
"""

from __future__ import annotations

import errno
import os

from iscsi_ovs.block import Error, Operation

_ERROR_OF = {
    errno.EFBIG: Error.OUT_OF_RANGE,
    errno.ERANGE: Error.OUT_OF_RANGE,
    errno.ENXIO: Error.OUT_OF_RANGE,
    errno.ENOSPC: Error.NO_SPACE,
    errno.EDQUOT: Error.NO_SPACE,
    errno.EBADF: Error.READ_ONLY,
    errno.EROFS: Error.READ_ONLY,
    errno.EPERM: Error.READ_ONLY,
    errno.EACCES: Error.READ_ONLY,
    errno.EOPNOTSUPP: Error.UNSUPPORTED,
    errno.ENOSYS: Error.UNSUPPORTED,
    errno.EINVAL: Error.INVALID,
    errno.EFAULT: Error.INVALID,
    errno.EPROTO: Error.INVALID,
    errno.ECANCELED: Error.CANCELLED,
    errno.ESTALE: Error.CANCELLED,
    errno.EILSEQ: Error.MISCOMPARE,
    errno.EBUSY: Error.SANITIZING,
    errno.EBADMSG: Error.BAD_PAGE,
}

_ERRNO_OF = {
    Error.OUT_OF_RANGE: errno.EFBIG,
    Error.NO_SPACE: errno.ENOSPC,
    Error.READ_ONLY: errno.EBADF,
    Error.MEDIUM_READ: errno.EIO,
    Error.BAD_PAGE: errno.EIO,
    Error.MEDIUM_WRITE: errno.EIO,
    Error.WRITE_FAULT: errno.EIO,
    Error.UNSUPPORTED: errno.EOPNOTSUPP,
    Error.INVALID: errno.EINVAL,
    Error.CANCELLED: errno.ECANCELED,
    Error.UNREACHABLE: errno.ECONNRESET,
    Error.OUTCOME_UNKNOWN: errno.ECONNRESET,
    Error.MISCOMPARE: errno.EILSEQ,
    Error.SANITIZING: errno.EBUSY,
}

assert set(_ERRNO_OF) == set(Error)


def error_of(number: int, operation: Operation, fua: bool) -> Error:
    """What a completion's errno means for a request; anything unknown is a failure of the medium."""
    known = _ERROR_OF.get(number)
    if known is not None:
        return known
    if operation in (Operation.READ, Operation.COMPARE):
        return Error.MEDIUM_READ
    return Error.WRITE_FAULT if operation == Operation.FLUSH or fua else Error.MEDIUM_WRITE


def errno_of(error: Error) -> int:
    """The errno that the library's callers see for a failed request."""
    return _ERRNO_OF[error]


def os_error(number: int, words: str) -> OSError:
    """An OSError (of the right subclass) that says what was being done."""
    return OSError(number, f"{words}: {os.strerror(number)}")
