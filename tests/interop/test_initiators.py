"""What real initiators see, write and read back: libiscsi's tools and qemu's, one at a time and together."""

from __future__ import annotations

import hashlib
import json
import random
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.interop import initiators
from tests.interop.initiators import qemu_io
from tests.interop.serving import IQN_PREFIX, Serve

pytestmark = pytest.mark.interop

NewDisk = Callable[[str], str]

KIB, MIB = 1024, 1024 * 1024


def test_iscsi_ls_shows_the_lun(target: Serve) -> None:
    """Discovery names the target and the portal of the ready line; LUN 0 is a disk of the volume's size."""
    said = initiators.run("iscsi-ls", "-s", target.portal_url)
    host, port = target.address
    assert f"Target:{IQN_PREFIX}demo Portal:{host}:{port},1" in said
    blocks = said.split(f"Target:{IQN_PREFIX}demo ")[1].split("Target:")[0]
    assert re.search(r"Lun:0\s+Type:DIRECT_ACCESS \(Size:(64|63)M\)", blocks), said


def test_inquiry(target: Serve) -> None:
    """The standard inquiry data says: a connected, fixed disk with command queueing."""
    said = initiators.run("iscsi-inq", target.url("demo"))
    for line in ("Peripheral Qualifier:CONNECTED", "Peripheral Device Type:DIRECT_ACCESS", "Removable:0", "CmdQue:1"):
        assert line in said, said


PAGES = {
    0x00: ("Page:0x00 ", "Page:0x80 ", "Page:0x83 ", "Page:0xb0 ", "Page:0xb1 ", "Page:0xb2 "),
    0x80: ("Unit Serial Number:[",),
    0x83: ("Designator Type:(3) NAA", "Designator Type:(1) T10_VENDORT_ID", "Association:(0) LOGICAL_UNIT"),
    0xB0: ("wsnz:1", "maximum transfer length:16384", "maximum unmap block descriptor count:256"),
    0xB1: ("Medium Rotation Rate:",),
    0xB2: ("lbpu:1", "lbpws:1", "lbpws10:1", "lbprz:1"),
}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: f"{page:02x}h")
def test_vital_product_data(target: Serve, page: int) -> None:
    """Each VPD page that is promised is there, and libiscsi reads out of it what the standard puts there."""
    said = initiators.run("iscsi-inq", "-e", "1", "-c", str(page), target.url("demo"))
    for words in PAGES[page]:
        assert words in said, said


def test_identity_of_a_volume(target: Serve, new_disk: NewDisk) -> None:
    """Two volumes have two serial numbers; one volume has one, at every login."""
    urls = [target.url("demo"), target.url("demo"), new_disk("1M")]
    first, again, other = (initiators.run("iscsi-inq", "-e", "1", "-c", "128", url) for url in urls)
    assert first == again != other
    assert re.search(r"Unit Serial Number:\[ *[0-9a-f]{32} *\]", first), first


def test_read_capacity_16(new_disk: NewDisk) -> None:
    """Capacity and block length of an odd size (rounded up to 4 KiB), and thin provisioning that reads zeroes."""
    said = initiators.run("iscsi-readcapacity16", new_disk(str(10 * MIB + 512)))
    assert f"RETURNED LOGICAL BLOCK ADDRESS:{(10 * MIB + 4096) // 512 - 1}\n" in said
    assert "LOGICAL BLOCK LENGTH IN BYTES:512\n" in said
    assert f"Total size:{10 * MIB + 4096}" in said
    assert "LBPME:1 LBPRZ:1" in said


def test_software_write_protect_is_answered(target: Serve) -> None:
    """iscsi-swp reads the control mode page; the disk is not protected."""
    said = initiators.run("iscsi-swp", target.url("demo"))
    assert "SWP:0" in said, said


def test_login_to_a_target_that_is_not_there(target: Serve) -> None:
    """A wrong name is refused with a status, not with a closed connection."""
    url = target.url("demo").replace(":demo/", ":nobody/")
    with pytest.raises(initiators.InitiatorError, match=r"(?i)not found|0x0203|target error|515") as refused:
        initiators.run("iscsi-inq", url)
    assert "nobody" in str(refused.value)


SIZES = (512, 1536, 4 * KIB, 8 * KIB - 512, 64 * KIB, 64 * KIB + 512, 256 * KIB, 256 * KIB + 512, MIB, 3 * MIB + 512)


@pytest.mark.parametrize("size", [*SIZES, 8 * MIB], ids=lambda size: f"{size}B")
def test_patterns_at_unaligned_offsets(target: Serve, new_disk: NewDisk, size: int) -> None:
    """What qemu-io writes at offsets that are multiples of 512 only, it reads back; what lies around stays zero."""
    url = new_disk("40M")
    first, second = 512 * 7, 20 * MIB + 512 * 3
    qemu_io(
        url,
        f"write -P 0xa5 {first} {size}",
        f"write -P 0x5a {second} {size}",
        f"read -P 0xa5 {first} {size}",
        f"read -P 0x5a {second} {size}",
    )
    qemu_io(  # a session of its own finds the same
        url,
        f"read -P 0x5a {second} {size}",
        f"read -P 0xa5 {first} {size}",
        f"read -P 0 0 {first}",
        f"read -P 0 {first + size} 4096",
        f"read -P 0 {second - 512} 512",
        f"read -P 0 {second + size} 512",
    )


def test_first_and_last_block(new_disk: NewDisk) -> None:
    """The edges of the disk are writable, and beyond them nothing is."""
    url = new_disk("8M")
    last = 8 * MIB - 512
    qemu_io(url, "write -P 1 0 512", f"write -P 2 {last} 512", "read -P 1 0 512", f"read -P 2 {last} 512")
    with pytest.raises(initiators.InitiatorError):
        qemu_io(url, f"write -P 3 {last} 1024")
    qemu_io(url, f"read -P 2 {last} 512")


def test_flush_fua_zero_and_discard(new_disk: NewDisk) -> None:
    """qemu-io's flush, forced unit access, zeroes with and without unmapping, discard; what is unmapped reads zero."""
    qemu_io(
        new_disk("16M"),
        "write -P 0x11 0 4M",
        "flush",
        "write -f -P 0x22 1M 64k",
        "write -z 2M 64k",
        "write -z -u 3M 512k",
        "discard 512k 256k",
        "flush",
        "read -P 0x11 0 512k",
        "read -P 0 512k 256k",
        "read -P 0x11 768k 256k",
        "read -P 0x22 1M 64k",
        "read -P 0 2M 64k",
        "read -P 0x11 2162688 983040",
        "read -P 0 3M 512k",
        "read -P 0x11 3584k 512k",
    )


def test_many_requests_in_flight(new_disk: NewDisk) -> None:
    """64 writes of mixed sizes at once, then as many reads at once: each finds its own pattern."""
    rng = random.Random(7)
    layout: list[tuple[int, int, int]] = []
    offset = 0
    for number in range(64):
        size = 512 * rng.choice((1, 3, 8, 16, 129, 512, 1024))
        layout.append((offset, size, 1 + number))
        offset += size + 512 * rng.randrange(3)
    writes = [f"aio_write -q -P {pattern} {at} {size}" for at, size, pattern in layout]
    reads = [f"aio_read -q -P {pattern} {at} {size}" for at, size, pattern in layout]
    qemu_io(new_disk("64M"), *writes, "aio_flush", *reads, "aio_flush")


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def random_file(path: Path, size: int, seed: int) -> Path:
    path.write_bytes(random.Random(seed).randbytes(size))
    return path


def test_image_round_trip(new_disk: NewDisk, short_dir: Path) -> None:
    """A file of random bytes copied onto the disk and back is the same file."""
    source = random_file(short_dir / "in", 24 * MIB + 4096 * 5, seed=1)
    url = new_disk(str(source.stat().st_size))
    initiators.upload(source, url)
    initiators.download(url, short_dir / "out")
    assert checksum(short_dir / "out") == checksum(source)


def test_two_initiators_at_once(new_disk: NewDisk, short_dir: Path) -> None:
    """Two round trips to two disks at the same time do not meet."""
    sources = [random_file(short_dir / f"in{number}", 16 * MIB, seed=number) for number in (2, 3)]

    def round_trip(source: Path) -> str:
        url = new_disk("16M")
        initiators.upload(source, url)
        copy = source.with_suffix(".out")
        initiators.download(url, copy)
        return checksum(copy)

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(round_trip, sources)) == [checksum(source) for source in sources]


def test_two_initiators_on_one_disk(new_disk: NewDisk) -> None:
    """Two sessions with one disk write its halves at the same time; each half holds its own pattern."""
    url = new_disk("32M")
    # libiscsi takes one initiator name for all its sessions: these two differ in their ISID only

    def write_half(half: int) -> None:
        where = f"-P {half} {half * 16 - 16}M 16M"
        qemu_io(url, *[f"write {where}"] * 3, f"read {where}")

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(write_half, (1, 2)))
    qemu_io(url, "read -P 1 0 16M", "read -P 2 16M 16M")


def test_volumes_while_it_runs(target: Serve) -> None:
    """A volume that is created, grown or removed while `serve` runs is served, grown or withdrawn at once."""
    assert target.volume("create", "late", "16M").returncode == 0
    url = target.url("demo").replace(":demo/", ":late/")
    assert f"Total size:{16 * MIB}" in initiators.run("iscsi-readcapacity16", url)
    shown = json.loads(target.volume("show", "late", "-o", "json").stdout)
    assert "late" in json.dumps(shown)
    assert target.volume("create", "late", "16M").returncode == 4
    assert target.volume("resize", "late", "32M").returncode == 0
    assert f"Total size:{32 * MIB}" in initiators.run("iscsi-readcapacity16", url)
    assert target.volume("remove", "late").returncode == 0
    with pytest.raises(initiators.InitiatorError):
        initiators.run("iscsi-readcapacity16", url)
    assert ":late " not in initiators.run("iscsi-ls", target.portal_url)
    assert target.volume("show", "late").returncode == 3
