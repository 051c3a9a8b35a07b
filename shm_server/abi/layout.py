"""The bytes that both sides agree on: ring mapping, submission entries, completion entries.

Little-endian, x86-64 only (CONTRACTS 8): indices and sleep words are naturally aligned u32 words, a cache line apart,
and are read and written as items of a ``memoryview.cast("I")``, never through struct. Entries are plain bytes: they
are written before, and read after, the index that publishes them.

    ring mapping:  header page (4096 bytes) | submission entries (128 bytes each) | completion entries (32 bytes each)

Nothing in the header is believed by the server after it wrote it: the client can scribble on it. The client checks it
once against the handshake.
"""

from __future__ import annotations

import enum
import struct

ABI_VERSION = 1
RING_MAGIC = b"OVSRING1"

CACHE_LINE_BYTES = 64
HEADER_BYTES = 4096

# magic, version, submission entries, completion entries, slot bytes, slot count
HEADER = struct.Struct("<8sIIIII")

# Word numbers (u32) in the header page, one to a cache line.
WORD_SUBMISSION_TAIL = 1 * CACHE_LINE_BYTES // 4  # written by the client
WORD_SUBMISSION_HEAD = 2 * CACHE_LINE_BYTES // 4  # written by the server
WORD_COMPLETION_TAIL = 3 * CACHE_LINE_BYTES // 4  # written by the server
WORD_COMPLETION_HEAD = 4 * CACHE_LINE_BYTES // 4  # written by the client
WORD_SERVER_SLEEPS = 5 * CACHE_LINE_BYTES // 4  # raised by the server, lowered by whoever wakes it
WORD_CLIENT_SLEEPS = 6 * CACHE_LINE_BYTES // 4  # raised by the client, lowered by whoever wakes it

INDEX_MASK = 0xFFFFFFFF  # indices run freely and wrap at 2**32

SLOT_BYTES = 65536
MIN_RING_ENTRIES = 16
MAX_RING_ENTRIES = 8192
DEFAULT_RING_ENTRIES = 1024

# opcode u8, flags u8, part count u16, handle u32, epoch u32, reserved u32, offset u64, length u64, user tag u64,
# then up to 7 parts of (slot u32, offset in slot u32, length u32), zero where unused.
ENTRY_BYTES = 128
INLINE_PARTS = 7
ENTRY_HEAD = struct.Struct("<BBHIIIQQQ")
ENTRY = struct.Struct("<BBHIIIQQQ21I4x")
# The same head and the first part: what most entries are.
ENTRY_ONE_PART = struct.Struct("<BBHIIIQQQIII")
PARTS_OFFSET = ENTRY_HEAD.size
# A whole entry, of which the head and the first part are looked at; and the parts of an entry, first to seventh.
ENTRY_FIRST = struct.Struct("<BBHIIIQQQIII76x")
ENTRY_PARTS = struct.Struct("<21I4x")

# A request of more than 7 parts is followed by entries that only carry parts: opcode CONTINUATION, 0, part count in
# this entry u16, reserved u32, then up to 10 parts. They are published together with their head, never alone.
CONTINUATION_PARTS = 10
CONTINUATION = struct.Struct("<BBHI30I")
MAX_PARTS = 512

# user tag u64, errno u32, reserved u32, bytes done u64, detail u64
COMPLETION_BYTES = 32
COMPLETION = struct.Struct("<QIIQQ")

# What stands in the place of a COPY's two parts: source offset u64, source handle u32, source epoch u32, 0 u32, 0 u32.
COPY_SOURCE = struct.Struct("<QIIII")
COPY_SOURCE_PARTS = 2

assert COPY_SOURCE.size == COPY_SOURCE_PARTS * 12
assert ENTRY.size == ENTRY_FIRST.size == PARTS_OFFSET + ENTRY_PARTS.size == ENTRY_BYTES
assert CONTINUATION.size == ENTRY_BYTES
assert COMPLETION.size == COMPLETION_BYTES


class Opcode(enum.IntEnum):
    """What an entry asks for.

    EXTENTS asks whether ``offset`` is allocated: its completion has the bytes for which the answer holds (at most
    ``length``), and detail 1 where there is data, 0 where a hole reads zeros.
    WRITE_SAME has one part, the pattern. COMPARE has parts of ``length`` bytes together, or one that is shorter: a
    pattern; or none: the range is read and nothing compared. COMPARE_AND_WRITE has parts of twice ``length``: what to
    compare, then what to write. A COMPARE that finds a difference ends with EILSEQ, detail the offset of the first byte
    that differs, from ``offset``. Whatever reads may meet a page that is not what its checksum says: EBADMSG, detail
    the same way. COPY's two parts name its source, not slots: see COPY_SOURCE.
    What a server does not know is answered ENOSYS."""

    READ = 1
    WRITE = 2
    FLUSH = 3
    DISCARD = 4
    WRITE_ZEROES = 5
    FENCE = 6
    WRITE_SAME = 7
    COMPARE = 8
    COMPARE_AND_WRITE = 9
    EXTENTS = 10
    COPY = 11
    OR_WRITE = 12
    WRITE_ATOMIC = 13
    CONTINUATION = 127


FLAG_FUA = 0x01  # whatever writes, but DISCARD and COPY: durable before it completes
FLAG_NO_UNMAP = 0x02  # WRITE_ZEROES: keep the space allocated


def ring_mapping_bytes(submission_entries: int, completion_entries: int) -> int:
    """Size in bytes of the ring mapping, a whole number of pages."""
    size = HEADER_BYTES + submission_entries * ENTRY_BYTES + completion_entries * COMPLETION_BYTES
    return (size + 4095) & ~4095


def submission_offset() -> int:
    """Byte offset of the first submission entry in the ring mapping."""
    return HEADER_BYTES


def completion_offset(submission_entries: int) -> int:
    """Byte offset of the first completion entry in the ring mapping."""
    return HEADER_BYTES + submission_entries * ENTRY_BYTES


def is_ring_size(entries: int) -> bool:
    """A ring has a power of two of entries, so that indices wrap at 2**32 without a seam."""
    return MIN_RING_ENTRIES <= entries <= MAX_RING_ENTRIES and entries & (entries - 1) == 0
