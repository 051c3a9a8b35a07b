"""The two ways of creating a disk and the three ways of starting a virtual machine on it, by the README's commands.

QEMU (TCG) boots a boot sector of ours under SeaBIOS, which reads one sector of the disk, writes it to the next, and
ends the machine by isa-debug-exit.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests import tools
from tests.interfaces.mounts import ROOT, Mount, mounted, run, shell

README = (ROOT / "README.md").read_text()
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


def readme(beginning: str, **replaced: str | Path) -> list[str]:
    """The README's one command that begins so, with the words of its examples replaced by the test's."""
    lines = (line.split("#")[0].strip() for line in README.splitlines() if line.startswith("    "))
    (command,) = (line for line in lines if line.startswith(beginning))
    for word, value in replaced.items():
        assert word in command
        command = command.replace(word, str(value))
    return shlex.split(command)


def iscsi_ovs(mount: Mount, command: list[str]) -> str:
    """One of the README's commands on the instance."""
    assert command[0] == "iscsi-ovs"
    return run(*command[1:], "--state-dir", mount.serve.state_dir)


def boot(command: list[str]) -> None:
    tools.require_tool("qemu-system-x86_64", "qemu-system-x86")
    machine = ["-accel", "tcg", "-display", "none", "-serial", "none", "-monitor", "none", "-nodefaults"]
    shell(*command, *machine, "-device", "isa-debug-exit,iobase=0xf4,iosize=1", "-no-reboot", code=DISK_OK)


def written(path: Path) -> bytes:
    """What the machine has written; and the next one is to read something else."""
    with path.open("r+b") as file:
        sectors = file.read(3 * SECTOR)
        file.seek(SECTOR)
        file.write(sectors[SECTOR : 2 * SECTOR].swapcase())
    return sectors[2 * SECTOR :]


@pytest.mark.parametrize(("create", "name"), [("qemu-img create", "vm"), ("truncate", "vm2")])
def test_a_disk_is_created_and_a_machine_started_on_it(mount: Mount, short_dir: Path, create: str, name: str) -> None:
    """… from the file, over iSCSI and over vhost-user, all by the README's commands; each writes what it read."""
    tools.require_tool("qemu-img", "qemu-utils")
    path = mount.path(name)
    shell(*readme(create, DIR=mount.directory))
    with path.open("r+b") as file:
        file.write(BOOT + WORDS)
    boot([*readme("qemu-system-x86_64 -drive file=DIR", DIR=mount.directory, vm=name), "-m", "32"])
    assert written(path) == WORDS
    mount.until_let_go(name)
    portal = ":".join(map(str, mount.serve.address))
    boot([*readme("qemu-system-x86_64 -drive file=iscsi", **{"127.0.0.1:3260": portal, ":vm": f":{name}"}), "-m", "32"])
    mount.until_let_go(name)
    assert written(path) == WORDS.swapcase()
    mount.until_let_go(name)
    socket = {"export vm": f"export {name}", "/run/iscsi-ovs/vm.sock": str(short_dir / "vm.sock")}
    said = iscsi_ovs(mount, readme("iscsi-ovs volume export vm --vhost-user", **socket))
    libvirt = said[said.index("  <") : said.index("User Mode Linux")]
    source = ElementTree.fromstring(f"<domain>{libvirt}</domain>").find("disk/source")
    assert source is not None
    assert source.get("path") == str(short_dir / "vm.sock")
    printed = said[said.index("  -object") : said.index("libvirt")].replace("\\\n", " ")
    boot(["qemu-system-x86_64", *shlex.split(printed.replace("1G", "64M"))])
    iscsi_ovs(mount, readme("iscsi-ovs volume unexport", vm=name))
    assert written(path) == WORDS
