"""The two ways of creating a disk and the two ways of starting a virtual machine on it, by the README's commands.

QEMU (TCG) boots a boot sector of ours under SeaBIOS, which reads one sector of the disk, writes it to the next, and
ends the machine by isa-debug-exit.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import tools
from tests.interfaces.mounts import Mount, mounted, shell
from tests.interop.serving import IQN_PREFIX

SECTOR = 512
WORDS = b"what the guest copies".ljust(SECTOR, b".")
DISK_OK = 0x5A * 2 + 1  # isa-debug-exit ends QEMU with 2 × the byte + 1
BOOT = (
    bytes.fromhex(
        "31c0 8ed8 8ec0 8ed0 bc007c"  # segments 0, the stack below us
        "bb0080 b80102 b90200 b600 cd13 7212"  # INT 13h: read sector 2 of the boot disk to 8000h; jump if carry
        "b80103 b90300 b600 cd13 7206"  # write it to sector 3
        "b05a baf400 ee"  # out F4h, 5Ah
        "f4 ebfd"  # halt
    ).ljust(510, b"\0")
    + b"\x55\xaa"
)


@pytest.fixture
def mount(short_dir: Path) -> Iterator[Mount]:
    with mounted(short_dir, {"demo": "1M"}) as made:
        yield made


def boot(drive: str) -> None:
    qemu = tools.require_tool("qemu-system-x86_64", "qemu-system-x86")
    machine = ["-accel", "tcg", "-m", "32", "-display", "none", "-serial", "none", "-monitor", "none", "-nodefaults"]
    leave = ["-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-no-reboot"]
    shell(qemu, *machine, *leave, "-drive", drive, code=DISK_OK)


@pytest.mark.parametrize(
    "create", [["qemu-img", "create", "-f", "raw"], ["truncate", "-s"]], ids=["qemu-img", "truncate"]
)
def test_a_disk_is_created_and_a_machine_started_on_it(mount: Mount, create: list[str]) -> None:
    """… from the file, and then from the same volume over iSCSI; each writes what it read."""
    path = mount.path("vm")
    if create[0] == "truncate":
        shell(*create, "10G", path)
    else:
        tools.require_tool("qemu-img", "qemu-utils")
        shell(*create, path, "10G")
    with path.open("r+b") as file:
        file.write(BOOT + WORDS)
    boot(f"file={path},format=raw,cache=none")
    with path.open("r+b") as file:
        assert file.read(3 * SECTOR)[2 * SECTOR :] == WORDS
        file.seek(SECTOR)
        file.write(WORDS.upper())
    mount.until_let_go("vm")
    host, port = mount.serve.address
    boot(f"file=iscsi://{host}:{port}/{IQN_PREFIX}vm/0,format=raw")
    with tempfile.NamedTemporaryFile() as copy:
        shell("dd", f"if={path}", f"of={copy.name}", "bs=512", "count=3")
        assert copy.read()[2 * SECTOR :] == WORDS.upper()
