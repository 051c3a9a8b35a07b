"""A qcow2 image read from its active L1 table: what is where, cluster by cluster, each entry checked before use.

Internal snapshots are passed over. A cluster of the file that two entries share, tables that overlap, offsets outside
of the file, and compressed clusters that are something else are ImageErrors: an image may come from anybody.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator

from iscsi_ovs.images import qcow2
from iscsi_ovs.images.image import STEP_BYTES, Extent, ImageError, Kind

_CHUNK_BITS = 15
_CHUNK_MASK = (1 << _CHUNK_BITS) - 1
_CLAIMS_MAX = 1 << 30


class Qcow2Reader:
    """On an open file, which stays the caller's."""

    def __init__(self, fd: int, file_bytes: int) -> None:
        self._fd = fd
        self._file_bytes = file_bytes
        self.description = qcow2.parse(os.pread(fd, qcow2.HEAD_BYTES_MAX, 0), file_bytes)
        self.size_bytes = self.description.size_bytes
        self.step_bytes = max(STEP_BYTES, self.description.cluster_bytes)

    # What is where --------------------------------------------------------------------------------------------------

    def extents(self) -> Iterator[Extent]:
        pending: Extent | None = None
        for extent in self._clusters():
            if pending is not None and (joined := self._join(pending, extent)) is not None:
                pending = joined
                continue
            if pending is not None:
                yield pending
            pending = extent
        if pending is not None:
            yield pending

    def _join(self, before: Extent, behind: Extent) -> Extent | None:
        if before.kind is not behind.kind or before.kind is Kind.COMPRESSED:
            return None
        length = before.length + behind.length
        if before.kind is Kind.DATA and (before.at + before.length != behind.at or length > self.step_bytes):
            return None
        return before._replace(length=length)

    def _clusters(self) -> Iterator[Extent]:
        described = self.description
        claimed = _Claims(described.cluster_bits)
        claimed.add(0, "its header")
        l1_bytes = described.l1_entries * qcow2.ENTRY_BYTES
        for at in range(described.l1_offset, described.l1_offset + l1_bytes, described.cluster_bytes):
            claimed.add(at, "its L1 table")
        for number, entry in enumerate(qcow2.numbers(self._read(l1_bytes, described.l1_offset))):
            offset = number * described.table_bytes
            length = min(described.table_bytes, self.size_bytes - offset)
            if entry & qcow2.L1_RESERVED:
                raise ImageError(f"entry {number} of its L1 table has reserved bits ({entry:#x})")
            at = entry & qcow2.OFFSET_MASK
            if not at:
                yield Extent(offset, length, Kind.HOLE)
                continue
            self._check(at, f"the L2 table of offset {offset:#x}")
            claimed.add(at, "an L2 table")
            yield from self._table(at, offset, length, claimed)

    def _table(self, at: int, offset: int, length: int, claimed: _Claims) -> Iterator[Extent]:
        cluster_bytes = self.description.cluster_bytes
        table = qcow2.numbers(self._read(cluster_bytes, at))
        if not any(table):
            yield Extent(offset, length, Kind.HOLE)
            return
        end = offset + length
        for entry in table:
            if offset >= end:
                return  # what entries beyond the disk's end say is nobody's
            yield self._cluster(entry, offset, min(cluster_bytes, end - offset), claimed)
            offset += cluster_bytes

    def _cluster(self, entry: int, offset: int, length: int, claimed: _Claims) -> Extent:
        if not entry:
            return Extent(offset, length, Kind.HOLE)
        if entry & qcow2.COMPRESSED:
            # Bit 63: "0 for clusters that are unused, compressed or require COW"
            at, _ = qcow2.compressed(entry, self.description.cluster_bits)
            if entry & qcow2.COPIED or at >= self._file_bytes:
                raise ImageError(f"the compressed cluster of offset {offset:#x} can't be at {at:#x}")
            return Extent(offset, length, Kind.COMPRESSED, entry)
        if entry & qcow2.L2_RESERVED:
            raise ImageError(f"the cluster of offset {offset:#x} has reserved bits in its entry ({entry:#x})")
        at = entry & qcow2.OFFSET_MASK
        is_zero = bool(entry & qcow2.ZERO)
        if is_zero and self.description.version == 2:
            raise ImageError(f"the cluster of offset {offset:#x} reads zeros, which version 2 can't say")
        if at:
            self._check(at, f"the cluster of offset {offset:#x}")
            claimed.add(at, f"the cluster of offset {offset:#x}")
        elif not is_zero:
            raise ImageError(f"the cluster of offset {offset:#x} has an entry without a place ({entry:#x})")
        return Extent(offset, length, Kind.ZERO) if is_zero else Extent(offset, length, Kind.DATA, at)

    def _check(self, at: int, what: str) -> None:
        if at % self.description.cluster_bytes or at >= self._file_bytes:
            raise ImageError(f"{what} can't be at {at:#x} of a file of {self._file_bytes} bytes")

    # What is there --------------------------------------------------------------------------------------------------

    def fill(self, extent: Extent, view: memoryview) -> None:
        if extent.kind is Kind.COMPRESSED:
            view[:] = self._decompressed(extent)[: extent.length]
            return
        done = 0
        while done < len(view):
            step = os.preadv(self._fd, [view[done:]], extent.at + done)
            if step == 0:  # the file ends within its last cluster
                view[done:] = bytes(len(view) - done)
                return
            done += step

    def _decompressed(self, extent: Extent) -> bytes:
        at, length = qcow2.compressed(extent.at, self.description.cluster_bits)
        try:
            # "decompression stops when it has produced a cluster of data"
            data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(
                os.pread(self._fd, length, at), self.description.cluster_bytes
            )
        except zlib.error as error:
            raise ImageError(f"the compressed cluster of offset {extent.offset:#x}: {error}") from None
        if len(data) < self.description.cluster_bytes:
            raise ImageError(f"the compressed cluster of offset {extent.offset:#x} has {len(data)} bytes")
        return data

    def _read(self, length: int, at: int) -> bytes:
        data = os.pread(self._fd, length, at)
        if len(data) < length:
            raise ImageError(f"the file ends within a table at {at:#x}")
        return data


class _Claims:
    """Clusters of the file that somebody has: a bit each, 128 MiB at most, and so much only for as many clusters."""

    def __init__(self, cluster_bits: int) -> None:
        self._bits = cluster_bits
        self._chunks: dict[int, bytearray] = {}

    def add(self, at: int, what: str) -> None:
        number = at >> self._bits
        if number >= _CLAIMS_MAX:
            return  # 64 TiB of a file with clusters of 64 KiB
        chunk = self._chunks.get(number >> _CHUNK_BITS)
        if chunk is None:
            chunk = self._chunks[number >> _CHUNK_BITS] = bytearray(1 << _CHUNK_BITS - 3)
        place, bit = (number & _CHUNK_MASK) >> 3, 1 << (number & 7)
        if chunk[place] & bit:
            raise ImageError(f"{what} is at {at:#x}, where something else is, too")
        chunk[place] |= bit
