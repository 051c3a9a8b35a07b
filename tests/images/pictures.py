"""Images made and read in tests: a model of the disk beside each."""

from __future__ import annotations

import os
from pathlib import Path

from iscsi_ovs.images.image import Kind
from iscsi_ovs.images.qcow2_reader import Qcow2Reader
from iscsi_ovs.images.qcow2_writer import Qcow2Writer

KIB = 1 << 10
MIB = 1 << 20


def write_qcow2(path: Path, disk: bytes, cluster_bytes: int = 4096, **options: object) -> None:
    """``disk`` as an image, its zero clusters left out."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    try:
        writer = Qcow2Writer(fd, len(disk), cluster_bytes=cluster_bytes, **options)  # type: ignore[arg-type]
        for at in range(0, len(disk), cluster_bytes):
            piece = disk[at : at + cluster_bytes]
            if any(piece):
                writer.write(at, memoryview(piece))
        writer.finish()
    finally:
        os.close(fd)


def read_qcow2(path: Path) -> bytes:
    """The disk that an image shows, as our reader sees it."""
    fd = os.open(path, os.O_RDONLY)
    try:
        reader = Qcow2Reader(fd, os.fstat(fd).st_size)
        disk = bytearray(reader.size_bytes)
        at = 0
        for extent in reader.extents():
            assert extent.offset == at, "extents come in order and leave nothing out"
            assert extent.length > 0
            if extent.kind in (Kind.DATA, Kind.COMPRESSED):
                assert extent.length <= reader.step_bytes
                reader.fill(extent, memoryview(disk)[at : at + extent.length])
            at += extent.length
        assert at == reader.size_bytes
        return bytes(disk)
    finally:
        os.close(fd)


def a_disk(size_bytes: int, seed: int = 1) -> bytes:
    """Data, zeros and pages of both, always the same for a seed."""
    import random

    chance = random.Random(seed)
    disk = bytearray(size_bytes)
    at = 0
    while at < size_bytes:
        length = min(size_bytes - at, chance.randrange(1, 200) * 512)
        if chance.random() < 0.5:
            disk[at : at + length] = chance.randbytes(length)
        at += length
    return bytes(disk)
