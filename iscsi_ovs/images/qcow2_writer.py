"""A qcow2 image of version 3, written from the start of the disk to its end, each byte of the file once.

    cluster 0: header | L1 table | clusters, and behind those of each L2 table the table | refcount blocks | their table

Tables are written when nothing more can come to them, so memory holds one L2 table and the L1 table. Every cluster of
the file is used exactly once, so its refcount is 1. The header comes last: what was not finished is no image.
"""

from __future__ import annotations

import os
from array import array
from collections.abc import Sequence

from iscsi_ovs.images import qcow2
from iscsi_ovs.images.image import ImageError

CLUSTER_BYTES = 64 << 10  # as QEMU's own


def cluster_bytes_for(size_bytes: int, smallest: int) -> int:
    """The smallest clusters, from ``smallest`` on, that an image of this size can have."""
    for bits in qcow2.CLUSTER_BITS:
        cluster = 1 << bits
        if cluster >= smallest and -(-size_bytes // (cluster * cluster // 8)) * 8 <= qcow2.L1_BYTES_MAX:
            return cluster
    raise ImageError(f"a disk of {size_bytes} bytes is too large for a qcow2 image")


class Qcow2Writer:
    """On an open, empty file, which stays the caller's."""

    def __init__(
        self,
        fd: int,
        size_bytes: int,
        *,
        cluster_bytes: int = CLUSTER_BYTES,
        backing: qcow2.Backing | None = None,
        extensions: Sequence[tuple[int, bytes]] = (),
    ) -> None:
        self._fd = fd
        self._size_bytes = size_bytes
        self.granule_bytes = self._cluster = cluster_bytes
        self._entries = cluster_bytes // qcow2.ENTRY_BYTES
        self._backing = backing
        self._extensions = extensions
        self._l1 = array("Q", bytes(8 * -(-size_bytes // (cluster_bytes * self._entries))))
        self._l2 = array("Q", bytes(cluster_bytes))
        self._l2_number = 0  # which one that is
        self._is_l2_empty = True
        self._end = cluster_bytes + self._round_up(len(self._l1) * qcow2.ENTRY_BYTES)
        self._header((0, 0))  # or it does not fit, and nobody need begin

    def _round_up(self, length: int) -> int:
        return -(-length // self._cluster) * self._cluster

    def write(self, offset: int, view: memoryview) -> None:
        _write(self._fd, view, self._end)
        host = self._end | qcow2.COPIED
        clusters = -(-len(view) // self._cluster)
        self._end += clusters * self._cluster
        self._enter(offset // self._cluster, range(host, host + clusters * self._cluster, self._cluster))

    def zero(self, offset: int, length: int) -> None:
        if self._backing is not None:
            first, stop = offset // self._cluster, -(-(offset + length) // self._cluster)
            while first < stop:  # not all at once: a run of zeros may be as long as the disk
                step = min(stop - first, self._entries)
                self._enter(first, [qcow2.ZERO] * step)
                first += step

    def _enter(self, cluster: int, entries: Sequence[int]) -> None:
        done = 0
        while done < len(entries):
            number, start = divmod(cluster + done, self._entries)
            if number != self._l2_number:
                self._write_l2()
                self._l2_number = number
            step = min(len(entries) - done, self._entries - start)
            self._l2[start : start + step] = array("Q", entries[done : done + step])
            self._is_l2_empty = False
            done += step

    def _write_l2(self) -> None:
        if self._is_l2_empty:
            return
        _write(self._fd, memoryview(qcow2.raw(self._l2)), self._end)
        self._l1[self._l2_number] = self._end | qcow2.COPIED
        self._end += self._cluster
        self._l2 = array("Q", bytes(self._cluster))
        self._is_l2_empty = True

    def finish(self) -> None:
        self._write_l2()
        _write(self._fd, memoryview(qcow2.raw(self._l1)), self._cluster)
        refcounts = self._write_refcounts()
        os.ftruncate(self._fd, self._end)
        _write(self._fd, memoryview(self._header(refcounts)), 0)

    def _write_refcounts(self) -> tuple[int, int]:
        """The table's offset and its clusters."""
        a_block = self._cluster // 2  # clusters that it counts
        used = self._end // self._cluster
        blocks = tables = 1
        while blocks * a_block < used + blocks + tables:
            blocks = -(-(used + blocks + tables) // a_block)
            tables = -(-blocks * qcow2.ENTRY_BYTES // self._cluster)
        at = self._end
        left = used + blocks + tables
        for number in range(blocks):
            counted = min(left, a_block)
            block = b"\0\x01" * counted
            _write(self._fd, memoryview(block.ljust(self._cluster, b"\0")), at + number * self._cluster)
            left -= counted
        table = at + blocks * self._cluster
        _write(self._fd, memoryview(qcow2.raw(range(at, table, self._cluster))), table)
        self._end = table + tables * self._cluster
        return table, tables

    def _header(self, refcounts: tuple[int, int]) -> bytes:
        l1 = self._cluster, len(self._l1)
        return qcow2.first_cluster(self._cluster, self._size_bytes, l1, refcounts, self._backing, self._extensions)


def _write(fd: int, view: memoryview, at: int) -> None:
    done = 0
    while done < len(view):
        done += os.pwrite(fd, view[done:], at + done)
