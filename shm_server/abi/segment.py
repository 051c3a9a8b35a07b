"""Shared memory: the segment of slots (POSIX, by posix_ipc) and the sealed ring mapping (memfd).

Slots: created O_CREX under a random name with mode 0600, allocated for real (an overcommitted tmpfs kills its users
by SIGBUS at first touch), and unlinked at once: only the file descriptor travels, so no crash leaves a name behind in
/dev/shm. A POSIX segment can't be sealed: a client can shrink it under the server, so the server reaches slots by
system calls only (they give EFAULT), and never loads from the mapping. Rings and sleep words are loaded, so they live
in a memfd that is sealed against shrinking.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import platform
import secrets

import posix_ipc

from shm_server.abi import layout

RING_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL


def check_machine() -> None:
    """Refuse, by name, a machine whose memory order we don't know (CONTRACTS 8)."""
    machine = platform.machine()
    if machine not in ("x86_64", "AMD64"):
        raise OSError(errno.ENOTSUP, f"shared-memory rings need x86-64's memory order; this machine is {machine}")


def create_slots(slot_count: int, slot_bytes: int = layout.SLOT_BYTES) -> int:
    """A new segment of ``slot_count`` × ``slot_bytes`` bytes, its memory really there. Returns its descriptor.

    Raises OSError ENOSPC, naming /dev/shm and the size, where the memory can't be had.
    """
    size = slot_count * slot_bytes
    while True:
        name = f"/ovs-{secrets.token_hex(12)}"
        try:
            shared = posix_ipc.SharedMemory(name, posix_ipc.O_CREX, mode=0o600, size=0)
            break
        except posix_ipc.ExistentialError:
            continue
    fd: int = shared.fd
    try:
        posix_ipc.unlink_shared_memory(name)
        os.ftruncate(fd, size)
        os.posix_fallocate(fd, 0, size)
    except OSError as error:
        os.close(fd)
        if error.errno != errno.ENOSPC:
            raise
        raise OSError(
            errno.ENOSPC,
            f"/dev/shm has no room for a segment of {size} bytes ({size >> 20} MiB): "
            f"enlarge it (docker: --shm-size) or lower shm_interface.shm_region_size",
        ) from None
    os.set_inheritable(fd, False)
    return fd


def create_rings(submission_entries: int, completion_entries: int, slot_bytes: int, slot_count: int) -> int:
    """A new ring mapping with its header written, sealed against shrinking and growing. Returns its descriptor."""
    assert layout.is_ring_size(submission_entries)
    assert layout.is_ring_size(completion_entries)
    fd = os.memfd_create("ovs-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, layout.ring_mapping_bytes(submission_entries, completion_entries))
    header = layout.HEADER.pack(
        layout.RING_MAGIC, layout.ABI_VERSION, submission_entries, completion_entries, slot_bytes, slot_count
    )
    os.pwrite(fd, header, 0)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, RING_SEALS)
    return fd


def map_slots(fd: int, slot_count: int, slot_bytes: int) -> mmap.mmap:
    """The segment mapped; OSError EINVAL where it is smaller than was said."""
    return _map(fd, slot_count * slot_bytes, "segment")


def map_rings(fd: int, submission_entries: int, completion_entries: int) -> mmap.mmap:
    """The ring mapping, its seals and header checked; OSError EINVAL where they are not what was said."""
    if fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK == 0:
        raise OSError(errno.EINVAL, "the ring mapping is not sealed against shrinking")
    mapping = _map(fd, layout.ring_mapping_bytes(submission_entries, completion_entries), "ring mapping")
    magic, version, submissions, completions, _, _ = layout.HEADER.unpack_from(mapping, 0)
    if magic != layout.RING_MAGIC or version != layout.ABI_VERSION:
        mapping.close()
        raise OSError(errno.EINVAL, f"ring mapping has magic {magic!r} version {version}, not {layout.ABI_VERSION}")
    if (submissions, completions) != (submission_entries, completion_entries):
        mapping.close()
        raise OSError(errno.EINVAL, f"ring mapping says {submissions}/{completions} entries, the handshake differs")
    return mapping


def _map(fd: int, size: int, what: str) -> mmap.mmap:
    actual = os.fstat(fd).st_size
    if actual < size:
        raise OSError(errno.EINVAL, f"the {what} has {actual} bytes, {size} were promised")
    return mmap.mmap(fd, size)
