"""QEMU starts a machine from an exported volume, by the arguments that `iscsi-ovs volume export` prints."""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests.interop.serving import Serve
from tests.tools import require_tool

pytestmark = [pytest.mark.interop, pytest.mark.timeout(60)]

MIB = 1 << 20
MEMORY = 0x8000
EXIT_PORT, EXIT_DONE, EXIT_FAILED = 0xF4, 0x20, 0x7F  # QEMU ends with twice the value, plus one

# SeaBIOS loads it to 0x7C00 and jumps there, the number of the drive in DL: read a sector by INT 13h, invert it, write
# it to the next, and end the machine by a write to the port of isa-debug-exit.
_CODE = bytes.fromhex(
    "31c0 8ed8 8ec0 8ed0"  # xor ax, ax; mov ds, ax; mov es, ax; mov ss, ax
    "bc007c fb 8816 3f7c"  # mov sp, 0x7c00; sti; mov [0x7c3f], dl
    "be407c b442 cd13 721f"  # mov si, 0x7c40; mov ah, 0x42 (extended read); int 0x13; jc failed
    "be0080 b90001"  # mov si, 0x8000; mov cx, 256
    "f714 83c602 e2f9"  # again: not word [si]; add si, 2; loop again
    "8a16 3f7c be507c b80043 cd13 7204"  # mov dl, [0x7c3f]; mov si, 0x7c50; mov ax, 0x4300 (write); int 0x13; jc failed
    "b020 eb02 b07f"  # mov al, 0x20; jmp end; failed: mov al, 0x7f
    "baf400 ee f4 00"  # end: mov dx, 0xf4; out dx, al; hlt; the drive
)
assert len(_CODE) == 0x40


def boot_sector(read_from: int, write_to: int) -> bytes:
    """A program of one sector, with the disk address packets of its read and its write behind it."""
    packets = b"".join(struct.pack("<BBHHHQ", 16, 0, 1, MEMORY, 0, sector) for sector in (read_from, write_to))
    return (_CODE + packets).ljust(510, b"\0") + b"\x55\xaa"


def test_a_boot_sector(short_dir: Path) -> None:
    """A boot sector under SeaBIOS reads a sector of the disk and writes another, through vhost-user-blk-pci.

    QEMU is stock, and its arguments are the printed ones, with a smaller memory.
    """
    qemu = require_tool("qemu-system-x86_64", "qemu-system-x86")
    data = os.urandom(512)
    with Serve(short_dir / "s", {"disk": "16M"}) as serve, Context(state_dir=serve.state_dir) as context:
        with context.open("disk") as volume:
            buffer = context.allocate(1024)
            buffer.data[:] = boot_sector(read_from=1, write_to=2) + data
            volume.write(buffer, 1024, 0)
        said = serve.volume("export", "disk", "--vhost-user", str(short_dir / "vm.sock"))
        assert said.returncode == 0, said.stderr
        lines = said.stdout.splitlines()
        begin = next(number for number, line in enumerate(lines) if line.startswith("QEMU"))
        end = next(number for number, line in enumerate(lines) if line.startswith("libvirt"))
        printed = shlex.split(" ".join(line.rstrip("\\") for line in lines[begin + 1 : end]).replace("1G", "64M"))
        command = [qemu, "-accel", "tcg", "-nodefaults", "-display", "none", *printed]
        command += ["-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 2 * EXIT_DONE + 1, f"{done.stderr}\n{serve.log_tail()}"
        assert serve.volume("unexport", "disk").returncode == 0
        with context.open("disk", os.O_RDONLY) as volume:
            volume.read(buffer, 512, 1024)
            assert bytes(buffer.data[:512]) == bytes(byte ^ 0xFF for byte in data)
