"""Our qcow2: what we write we and QEMU read, what QEMU writes we read, and what is no image is refused by name."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs.images import qcow2
from iscsi_ovs.images.image import ImageError
from iscsi_ovs.images.qcow2_reader import Qcow2Reader
from iscsi_ovs.images.qcow2_writer import Qcow2Writer, cluster_bytes_for
from tests.images.pictures import KIB, MIB, a_disk, read_qcow2, write_qcow2
from tests.tools import require_tool

CLUSTERS = (512, 4 * KIB, 64 * KIB, 2 * MIB)


def qemu_img(*arguments: str | Path) -> str:
    tool = require_tool("qemu-img", "qemu-utils")
    ran = subprocess.run([tool, *map(str, arguments)], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    return ran.stdout


@pytest.fixture
def disk() -> bytes:
    """Neither whole clusters nor whole L2 tables of any size that is tried."""
    return a_disk(3 * MIB + 12 * KIB)


@pytest.mark.parametrize("cluster_bytes", CLUSTERS)
def test_written_by_us(tmp_path: Path, disk: bytes, cluster_bytes: int) -> None:
    """QEMU finds no fault in our image, and the same bytes; so do we."""
    image, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    write_qcow2(image, disk, cluster_bytes, extensions=[(0x4F565331, b"{}")])
    raw.write_bytes(disk)
    assert "No errors were found" in qemu_img("check", image)
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", image, raw)
    assert read_qcow2(image) == disk


@pytest.mark.parametrize("cluster_bytes", CLUSTERS)
@pytest.mark.parametrize("options", [[], ["-c"], ["-o", "compat=0.10"], ["-o", "preallocation=metadata"]], ids=str)
def test_written_by_qemu(tmp_path: Path, disk: bytes, cluster_bytes: int, options: list[str]) -> None:
    """Both versions, compressed clusters, and tables that name clusters that were never written."""
    image, raw = tmp_path / "a.qcow2", tmp_path / "a.raw"
    raw.write_bytes(disk)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", *options, "-o", f"cluster_size={cluster_bytes}", raw, image)
    assert read_qcow2(image) == disk


def test_zeros_over_a_backing_image(tmp_path: Path) -> None:
    """An image that stands on another one says where zeros hide what that has; QEMU reads the two as one."""
    below, above = a_disk(MIB, 1), bytearray(a_disk(MIB, 1))
    (tmp_path / "below.raw").write_bytes(below)
    fd = os.open(tmp_path / "above.qcow2", os.O_RDWR | os.O_CREAT)
    writer = Qcow2Writer(fd, 3 * MIB, cluster_bytes=4 * KIB, backing=qcow2.Backing("below.raw", "raw"))
    writer.zero(64 * KIB, 600 * KIB)
    writer.write(700 * KIB, memoryview(b"x" * 8 * KIB))
    writer.zero(2 * MIB, MIB)
    writer.finish()
    os.close(fd)
    above[64 * KIB : 664 * KIB] = bytes(600 * KIB)
    above[700 * KIB : 708 * KIB] = b"x" * 8 * KIB
    (tmp_path / "expected.raw").write_bytes(above + bytes(2 * MIB))
    assert "No errors were found" in qemu_img("check", tmp_path / "above.qcow2")
    names = tmp_path / "above.qcow2", tmp_path / "expected.raw"
    assert "identical" in qemu_img("compare", "-f", "qcow2", "-F", "raw", *names)


@given(
    disk=st.lists(st.booleans(), min_size=1, max_size=200),
    tail=st.integers(0, 511),
)
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, disk: list[bool], tail: int) -> None:
    """Any pattern of used and unused clusters over several L2 tables, any size."""
    path = tmp_path_factory.mktemp("round") / "a.qcow2"
    data = b"".join((b"d" if used else b"\0") * 512 for used in disk) + b"t" * tail
    write_qcow2(path, data, 512)
    assert read_qcow2(path) == data


def test_as_small_as_it_can_be(tmp_path: Path) -> None:
    """An empty disk of 64 TiB is a file of under 2 MiB; clusters grow where the L1 table would not fit."""
    assert cluster_bytes_for(8 << 40, 4096) == 4096
    assert cluster_bytes_for((8 << 40) + 1, 4096) == 8192
    assert cluster_bytes_for(64 << 40, 64 * KIB) == 64 * KIB
    fd = os.open(tmp_path / "a.qcow2", os.O_RDWR | os.O_CREAT)
    Qcow2Writer(fd, 64 << 40).finish()
    assert os.fstat(fd).st_size < 2 * MIB
    os.close(fd)
    assert "No errors were found" in qemu_img("check", tmp_path / "a.qcow2")


# Refusals ----------------------------------------------------------------------------------------------------------


def _set(offset: int, value: int, width: int) -> Callable[[bytearray], None]:
    def change(image: bytearray) -> None:
        image[offset : offset + width] = value.to_bytes(width, "big")

    return change


L1 = 4 * KIB
ENTRY = 8


def _of_l2(change: Callable[[int, int], int], number: int = 0) -> Callable[[bytearray], None]:
    """Change an entry of the first L2 table: (entry, the file's length) → entry."""

    def apply(image: bytearray) -> None:
        at = int.from_bytes(image[L1 : L1 + 8], "big") & qcow2.OFFSET_MASK
        at += number * ENTRY
        entry = int.from_bytes(image[at : at + 8], "big")
        image[at : at + 8] = change(entry, len(image)).to_bytes(8, "big")

    return apply


REFUSALS: list[tuple[str, Callable[[bytearray], None], str]] = [
    ("magic", _set(0, 0, 4), "no header of a qcow2 image"),
    ("version 1", _set(4, 1, 4), "version 1"),
    ("version 4", _set(4, 4, 4), "version 4"),
    ("clusters of 256", _set(20, 8, 4), r"2\^8 bytes"),
    ("clusters of 4 MiB", _set(20, 22, 4), r"2\^22 bytes"),
    ("AES", _set(32, 1, 4), r"encrypted \(AES\)"),
    ("LUKS", _set(32, 2, 4), r"encrypted \(LUKS\)"),
    ("corrupt", _set(72, 1 << 1, 8), "marked as corrupt"),
    ("external data", _set(72, 1 << 2, 8), "external file"),
    ("zstd", _set(72, 1 << 3, 8), "otherwise than by zlib"),
    ("extended L2", _set(72, 1 << 4, 8), "extended L2"),
    ("unknown feature", _set(72, 1 << 63, 8), "incompatible features"),
    ("header length", _set(100, 96, 4), "can't have 96 bytes"),
    ("odd header length", _set(100, 106, 4), "can't have 106 bytes"),
    ("header beyond the cluster", _set(100, 1 << 20, 4), "can't have 1048576 bytes"),
    ("huge disk", _set(24, (1 << 64) - 1, 8), "over 32 MiB"),
    ("short L1", _set(36, 0, 4), "0 entries, and 1 are needed"),
    ("L1 within a cluster", _set(40, 4 * KIB + 8, 8), "L1 table can't be"),
    ("L1 beyond the end", _set(40, 1 << 40, 8), "L1 table can't be"),
    ("L1 over the header", _set(40, 0, 8), "something else is, too"),
    ("extension beyond the cluster", _set(108, 1 << 30, 4), "beyond the first cluster"),
    ("backing name outside", _set(8, 4090, 8), "name of its backing file"),
    ("L2 beyond the end", _set(L1, 1 << 40, 8), "the L2 table of offset 0x0 can't be"),
    ("L2 within a cluster", _set(L1, 4 * KIB + 512, 8), "the L2 table of offset 0x0 can't be"),
    ("reserved bits of L1", _set(L1, (1 << 56) + 8 * KIB, 8), "reserved bits"),
    ("L2 is L1", _set(L1, 4 * KIB, 8), "an L2 table is at 0x1000, where something else is, too"),
    ("cluster beyond the end", _of_l2(lambda entry, end: end), "can't be at"),
    ("cluster between two", _of_l2(lambda entry, end: entry + 512), "can't be at"),
    ("cluster of another", _of_l2(lambda entry, end: entry + 4 * KIB), "something else is, too"),
    ("cluster that is the header", _of_l2(lambda entry, end: qcow2.COPIED), "without a place"),
    ("reserved bits of L2", _of_l2(lambda entry, end: entry | 4), "reserved bits"),
    ("compressed beyond the end", _of_l2(lambda entry, end: qcow2.COMPRESSED | end), "compressed cluster of offset"),
    ("compressed and copied", _of_l2(lambda entry, end: entry | qcow2.COMPRESSED), "compressed cluster of offset"),
    ("no deflate stream", _of_l2(lambda entry, end: qcow2.COMPRESSED | 100), "compressed cluster of offset"),
]  # fmt: skip


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("good") / "good.qcow2"
    write_qcow2(path, b"data" * 4 * KIB, extensions=[(0x4F565331, b"{}")])
    return path.read_bytes()


@pytest.mark.parametrize(("change", "words"), [row[1:] for row in REFUSALS], ids=[row[0] for row in REFUSALS])
def test_refused(tmp_path: Path, good: bytes, change: Callable[[bytearray], None], words: str) -> None:
    """Each lie is named; nothing else is raised."""
    image = bytearray(good)
    change(image)
    path = tmp_path / "bad.qcow2"
    path.write_bytes(image)
    with pytest.raises(ImageError, match=words):
        read_qcow2(path)


def test_zero_flag_of_version_2(tmp_path: Path, disk: bytes) -> None:
    """Version 2 has no such flag: the bit is reserved."""
    raw, path = tmp_path / "a.raw", tmp_path / "a.qcow2"
    raw.write_bytes(b"x" * 64 * KIB)
    qemu_img("convert", "-f", "raw", "-O", "qcow2", "-o", "compat=0.10", raw, path)
    image = bytearray(path.read_bytes())
    l1 = int.from_bytes(image[40:48], "big")
    l2 = int.from_bytes(image[l1 : l1 + 8], "big") & qcow2.OFFSET_MASK
    image[l2 + 7] |= 1
    path.write_bytes(image)
    with pytest.raises(ImageError, match="version 2 can't say"):
        read_qcow2(path)


def test_truncated_anywhere(tmp_path: Path, good: bytes) -> None:
    """Cut at any cluster and at any byte of its header it is refused, or is what it was where only data ends early."""
    path = tmp_path / "cut.qcow2"
    for length in [*range(130), *range(4 * KIB, len(good), 1 * KIB)]:
        path.write_bytes(good[:length])
        try:
            read_qcow2(path)
        except ImageError:
            continue
        assert length > 4 * KIB, "a header alone is no image"


@given(st.lists(st.tuples(st.integers(0, 12 * KIB), st.integers(0, 255)), min_size=1, max_size=8))
def test_hostile(tmp_path_factory: pytest.TempPathFactory, good: bytes, changes: list[tuple[int, int]]) -> None:
    """Whatever bytes of header and tables are changed: it is read, or an ImageError, and in bounded memory."""
    image = bytearray(good)
    for at, value in changes:
        image[at % len(image)] = value
    path = tmp_path_factory.mktemp("hostile") / "a.qcow2"
    path.write_bytes(image)
    fd = os.open(path, os.O_RDONLY)
    try:
        reader = Qcow2Reader(fd, len(image))
        total = 0
        for extent in reader.extents():
            total += extent.length
            if extent.at and extent.length <= reader.step_bytes:
                reader.fill(extent, memoryview(bytearray(extent.length)))
            if total > 64 * MIB:  # a disk that is larger than the file is no lie
                break
    except ImageError:
        pass
    finally:
        os.close(fd)


_U64 = st.sampled_from([0, 1, 512, 4096, 8192, 1 << 40, 1 << 62, 1 << 63, (1 << 64) - 1]) | st.integers(
    0, (1 << 64) - 1
)


@given(st.lists(_U64, min_size=9, max_size=9), st.lists(_U64, min_size=16, max_size=16), st.integers(8, 23))
def test_hostile_numbers(
    tmp_path_factory: pytest.TempPathFactory, header: list[int], table: list[int], cluster_bits: int
) -> None:
    """The same for numbers that an attacker would choose, in the places where they hurt."""
    fields = qcow2.Header(
        version=3,
        cluster_bits=cluster_bits,
        backing_file_offset=header[0],
        backing_file_size=header[1] & 0xFFFF_FFFF,
        size=header[2],
        l1_size=header[3] & 0xFFFF_FFFF,
        l1_table_offset=header[4],
    )
    more = qcow2.HeaderOf3(incompatible_features=header[5] & 1, header_length=104)
    image = (fields.pack() + more.pack() + qcow2.Extension().pack()).ljust(4 * KIB, b"\0")
    image += qcow2.raw(table).ljust(4 * KIB, b"\0") * 3
    path = tmp_path_factory.mktemp("hostile") / "a.qcow2"
    path.write_bytes(image)
    fd = os.open(path, os.O_RDONLY)
    try:
        reader = Qcow2Reader(fd, len(image))
        for _, extent in zip(range(10_000), reader.extents(), strict=False):
            if extent.at:
                reader.fill(extent, memoryview(bytearray(extent.length)))
    except ImageError:
        pass
    finally:
        os.close(fd)
