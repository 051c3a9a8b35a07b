"""The qcow2 format, versions 2 and 3 (QEMU's docs/interop/qcow2.txt): header, extensions, entries of its tables.

    header | extensions | name of the backing file     the first cluster
    L1 table → L2 tables → clusters                    which cluster of the file has which of the disk
    refcount table → refcount blocks                   how often each cluster of the file is used

All numbers are big-endian. ``parse`` believes nothing: each offset and length is checked against the file before it is
used, and what this reader can't do is refused by name. Nothing here reads or writes a file.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from construct import Int32ub, Int64ub, Struct

from iscsi_ovs.images.image import ImageError
from iscsi_ovs.wire import Derived

MAGIC = 0x514649FB  # "QFI\xfb"
COPIED = 1 << 63  # an entry's cluster has a refcount of exactly one
COMPRESSED = 1 << 62
ZERO = 1
OFFSET_MASK = 0x00FF_FFFF_FFFF_FE00  # bits 9 to 55
L1_RESERVED = 0x7F00_0000_0000_01FF
L2_RESERVED = 0x3F00_0000_0000_01FE  # of a standard cluster's entry
ENTRY_BYTES = 8
CLUSTER_BITS = range(9, 22)  # QEMU's upper limit, 2 MiB, is ours
L1_BYTES_MAX = 32 << 20  # QEMU's limit
BACKING_NAME_BYTES_MAX = 1023
HEAD_BYTES_MAX = 1 << CLUSTER_BITS[-1]  # a first cluster

# Header extensions
END, BACKING_FORMAT = 0, 0xE2792ACA

_REFCOUNT_ORDER = 4
_FEATURES = {  # bits of incompatible_features that are refused: those that change what is where
    1: "is marked as corrupt",
    2: "keeps its data in an external file",
    3: "is compressed otherwise than by zlib",
    4: "has extended L2 entries",
}
_HARMLESS = 1 << 0  # dirty: only refcounts may be wrong, and a reader has no use for them
_ENCRYPTIONS = {1: "AES", 2: "LUKS"}


class Header(Derived):
    """Both versions."""

    declaration = Struct(
        "magic" / Int32ub, "version" / Int32ub,
        "backing_file_offset" / Int64ub, "backing_file_size" / Int32ub,
        "cluster_bits" / Int32ub, "size" / Int64ub, "crypt_method" / Int32ub,
        "l1_size" / Int32ub, "l1_table_offset" / Int64ub,
        "refcount_table_offset" / Int64ub, "refcount_table_clusters" / Int32ub,
        "nb_snapshots" / Int32ub, "snapshots_offset" / Int64ub,
    )  # fmt: skip
    defaults = {"magic": MAGIC, "version": 3}


class HeaderOf3(Derived):
    """What version 3 has behind it."""

    declaration = Struct(
        "incompatible_features" / Int64ub, "compatible_features" / Int64ub, "autoclear_features" / Int64ub,
        "refcount_order" / Int32ub, "header_length" / Int32ub,
    )  # fmt: skip
    defaults = {"refcount_order": _REFCOUNT_ORDER, "header_length": 104}


class Extension(Derived):
    """In front of its data, which are padded to 8 bytes."""

    declaration = Struct("type" / Int32ub, "length" / Int32ub)


_HEADER_BYTES = Header.SIZE + HeaderOf3.SIZE


@dataclass(frozen=True, slots=True)
class Backing:
    """What an image stands on."""

    name: str
    format: str  # "": not said


@dataclass(frozen=True, slots=True)
class Description:
    """What the first cluster says."""

    version: int
    cluster_bits: int
    size_bytes: int
    l1_offset: int
    l1_entries: int
    backing: Backing | None
    extensions: dict[int, bytes]

    @property
    def cluster_bytes(self) -> int:
        return 1 << self.cluster_bits

    @property
    def table_bytes(self) -> int:
        """Of the disk, that one L2 table is for."""
        return self.cluster_bytes * (self.cluster_bytes // ENTRY_BYTES)


def is_qcow2(head: bytes) -> bool:
    return head[:4] == MAGIC.to_bytes(4, "big")


def parse(head: bytes, file_bytes: int) -> Description:
    """``head``: the file's first HEAD_BYTES_MAX bytes, or all of it."""
    if not is_qcow2(head):
        raise ImageError("it has no header of a qcow2 image")
    if len(head) < Header.SIZE:
        raise ImageError("its header is cut off")
    header = Header.unpack_from(head)
    if header.version not in (2, 3):
        raise ImageError(f"it is qcow2 of version {header.version}, and only 2 and 3 are known")
    if header.cluster_bits not in CLUSTER_BITS:
        raise ImageError(f"its clusters have 2^{header.cluster_bits} bytes, and 2^9 to 2^21 can be")
    if header.crypt_method:
        method = _ENCRYPTIONS.get(header.crypt_method, f"method {header.crypt_method}")
        raise ImageError(f"it is encrypted ({method})")
    cluster_bytes = 1 << header.cluster_bits
    cluster = head[:cluster_bytes]
    extensions_at = Header.SIZE if header.version == 2 else _check_version_3(cluster)
    table_bytes = cluster_bytes * (cluster_bytes // ENTRY_BYTES)
    l1_entries = -(-header.size // table_bytes)
    if l1_entries * ENTRY_BYTES > L1_BYTES_MAX:
        raise ImageError(f"a disk of {header.size} bytes in clusters of {cluster_bytes} has an L1 table of over 32 MiB")
    if header.l1_size < l1_entries:
        raise ImageError(f"its L1 table has {header.l1_size} entries, and {l1_entries} are needed")
    if header.l1_table_offset % cluster_bytes or header.l1_table_offset + l1_entries * ENTRY_BYTES > file_bytes:
        raise ImageError(f"its L1 table can't be at offset {header.l1_table_offset:#x}")
    extensions = _extensions(cluster, extensions_at)
    backing = None
    if header.backing_file_offset:
        name = _backing_name(cluster, header.backing_file_offset, header.backing_file_size)
        backing = Backing(name, extensions.pop(BACKING_FORMAT, b"").decode(errors="replace"))
    return Description(
        header.version, header.cluster_bits, header.size, header.l1_table_offset, l1_entries, backing, extensions
    )


def _check_version_3(cluster: bytes) -> int:
    """Where its extensions begin."""
    if len(cluster) < _HEADER_BYTES:
        raise ImageError("its header is cut off")
    more = HeaderOf3.unpack_from(cluster, Header.SIZE)
    features = more.incompatible_features & ~_HARMLESS
    for bit, what in _FEATURES.items():
        if features & 1 << bit:
            raise ImageError(f"it {what}")
    if features:
        raise ImageError(f"it has incompatible features that are not known here ({features:#x})")
    length: int = more.header_length
    # "at least 104 bytes and must be a multiple of 8"
    if length < _HEADER_BYTES or length % 8 or length > len(cluster):
        raise ImageError(f"its header can't have {length} bytes")
    return length


def _extensions(cluster: bytes, at: int) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    while at + Extension.SIZE <= len(cluster):
        extension = Extension.unpack_from(cluster, at)
        if extension.type == END:
            return found
        at += Extension.SIZE
        if extension.length > len(cluster) - at:
            raise ImageError(f"its header extension {extension.type:#x} goes beyond the first cluster")
        # "Unless stated otherwise, each header extension type shall appear at most once in the same image."
        if extension.type in found:
            raise ImageError(f"its header extension {extension.type:#x} is there twice")
        found[extension.type] = cluster[at : at + extension.length]
        at += -(-extension.length // 8) * 8
    return found  # the spec lets the area end with the cluster


def _backing_name(cluster: bytes, at: int, length: int) -> str:
    if not 0 < length <= BACKING_NAME_BYTES_MAX or at + length > len(cluster):
        raise ImageError("the name of its backing file lies outside of the first cluster")
    return cluster[at : at + length].decode(errors="replace")


def first_cluster(
    cluster_bytes: int,
    size_bytes: int,
    l1: tuple[int, int],
    refcounts: tuple[int, int],
    backing: Backing | None,
    extensions: Iterable[tuple[int, bytes]],
) -> bytes:
    """Of a version 3 image. ``l1``: offset, entries; ``refcounts``: offset of the table, its clusters."""
    header = Header(
        cluster_bits=cluster_bytes.bit_length() - 1,
        size=size_bytes,
        l1_table_offset=l1[0],
        l1_size=l1[1],
        refcount_table_offset=refcounts[0],
        refcount_table_clusters=refcounts[1],
    )
    listed = list(extensions)
    if backing is not None and backing.format:
        listed.insert(0, (BACKING_FORMAT, backing.format.encode()))
    tail = b"".join(_packed(kind, data) for kind, data in [*listed, (END, b"")])
    name = b"" if backing is None else backing.name.encode()
    if len(name) > BACKING_NAME_BYTES_MAX:
        raise ImageError(f"the name of a backing file has at most {BACKING_NAME_BYTES_MAX} bytes")
    if name:
        header.backing_file_offset = _HEADER_BYTES + len(tail)
        header.backing_file_size = len(name)
    cluster: bytes = header.pack() + HeaderOf3().pack() + tail + name
    if len(cluster) > cluster_bytes:
        raise ImageError(f"the header of an image does not fit in a cluster of {cluster_bytes} bytes")
    return cluster.ljust(cluster_bytes, b"\0")


def _packed(kind: int, data: bytes) -> bytes:
    head: bytes = Extension(type=kind, length=len(data)).pack()
    return head + data + bytes(-len(data) % 8)


def compressed(entry: int, cluster_bits: int) -> tuple[int, int]:
    """Offset in the file, and how many bytes from there hold the compressed cluster at most."""
    bits = 62 - (cluster_bits - 8)
    at = entry & (1 << bits) - 1
    sectors = (entry & COMPRESSED - 1) >> bits  # "additional 512-byte sectors", beyond the one with the offset
    return at, (sectors + 1) * 512 - at % 512


def numbers(raw: bytes) -> array[int]:
    """A table's entries."""
    table = array("Q", raw)
    if sys.byteorder == "little":
        table.byteswap()
    return table


def raw(table: Sequence[int]) -> bytes:
    """The other way."""
    copied = array("Q", table)
    if sys.byteorder == "little":
        copied.byteswap()
    return copied.tobytes()
