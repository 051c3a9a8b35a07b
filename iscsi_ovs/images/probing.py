"""Which format a file has, by what it begins with: and where that is no proof, that is said instead of guessed.

A raw image begins with whatever a guest wrote there. So a file that looks like another format, or whose name speaks
against what it looks like, is taken only by somebody who says what it is.
"""

from __future__ import annotations

from iscsi_ovs.images import qcow2
from iscsi_ovs.images.image import ImageError

# What other files begin with, at an offset.
_OTHERS = (
    (0, b"QED\0", "a QED image"),
    (0, b"KDMV", "a VMDK image"),
    (0, b"COWD", "a VMDK image"),
    (0, b"# Disk DescriptorFile", "a VMDK description"),
    (0, b"vhdxfile", "a VHDX image"),
    (0, b"conectix", "a VHD image"),
    (0x40, b"\x7f\x10\xda\xbe", "a VDI image"),
    (0, b"WithoutFreeSpace", "a Parallels image"),
    (0, b"WithouFreSpacExt", "a Parallels image"),
    (0, b"\x1f\x8b", "compressed by gzip"),
    (0, b"\xfd7zXZ\0", "compressed by xz"),
    (0, b"\x28\xb5\x2f\xfd", "compressed by zstd"),
    (0, b"BZh", "compressed by bzip2"),
    (0, b"PK\x03\x04", "a ZIP archive"),
)
_RAW_SUFFIXES = (".raw", ".img", ".iso")
_QCOW2_SUFFIXES = (".qcow2", ".qcow")
HEAD_BYTES = 512


def probe(head: bytes, name: str, size_bytes: int) -> str:
    """The format of a file whose first HEAD_BYTES are ``head``; ImageError where only its owner can know."""
    lower = name.lower()
    if qcow2.is_qcow2(head):
        if lower.endswith(_RAW_SUFFIXES):
            raise _doubt("it looks like qcow2 and is named like a raw image")
        return "qcow2"
    for at, magic, what in _OTHERS:
        if head[at : at + len(magic)] == magic:
            raise _doubt(f"it looks like {what}")
    if lower.endswith(_QCOW2_SUFFIXES):
        raise _doubt("it is named like a qcow2 image and is none")
    if size_bytes % 512:
        raise _doubt(f"its {size_bytes} bytes are no multiple of 512, as those of a disk are")
    return "raw"


def _doubt(words: str) -> ImageError:
    return ImageError(f"{words}: say --format raw or --format qcow2 if you know it")
