"""Which format a file has: said where its header proves it, refused where only its owner can know."""

from __future__ import annotations

import pytest

from iscsi_ovs.images.image import ImageError
from iscsi_ovs.images.probing import probe

QCOW2 = b"QFI\xfb" + bytes(508)


@pytest.mark.parametrize(
    ("head", "name", "size_bytes", "found"),
    [
        (QCOW2, "a.qcow2", 196616, "qcow2"),
        (QCOW2, "a", 196616, "qcow2"),
        (bytes(512), "a.raw", 1 << 20, "raw"),
        (b"\xeb\x63\x90" + bytes(509), "disk.img", 1 << 20, "raw"),
        (bytes(512), "a", 1 << 20, "raw"),
    ],
)
def test_found(head: bytes, name: str, size_bytes: int, found: str) -> None:
    """By its header; a name that says nothing is no argument."""
    assert probe(head, name, size_bytes) == found


@pytest.mark.parametrize(
    ("head", "name", "size_bytes", "words"),
    [
        (QCOW2, "disk.raw", 1 << 20, "looks like qcow2 and is named like a raw image"),
        (bytes(512), "a.qcow2", 1 << 20, "named like a qcow2 image and is none"),
        (b"KDMV" + bytes(508), "a.vmdk", 1 << 20, "a VMDK image"),
        (b"vhdxfile" + bytes(504), "a", 1 << 20, "a VHDX image"),
        (bytes(64) + b"\x7f\x10\xda\xbe" + bytes(444), "a.vdi", 1 << 20, "a VDI image"),
        (b"\x1f\x8b" + bytes(510), "a.raw.gz", 1 << 20, "compressed by gzip"),
        (bytes(512), "a.raw", 1000, "no multiple of 512"),
    ],
)
def test_doubtful(head: bytes, name: str, size_bytes: int, words: str) -> None:
    """A guest can write any header into a raw disk: so a contradiction is not guessed away."""
    with pytest.raises(ImageError, match=f"{words}.*: say --format"):
        probe(head, name, size_bytes)
