"""QEMU starts a machine from an exported volume, by the arguments that `iscsi-ovs volume export` prints."""

from __future__ import annotations

import os
import shlex
import struct
import subprocess
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests.interop import processes
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


def arguments(serve: Serve, path: Path) -> list[str]:
    """Exports the disk; what is printed then, and what a test adds."""
    said = serve.volume("export", "disk", "--vhost-user", str(path))
    assert said.returncode == 0, said.stderr
    lines = said.stdout.splitlines()
    begin = next(number for number, line in enumerate(lines) if line.startswith("QEMU"))
    end = next(number for number, line in enumerate(lines) if line.startswith("libvirt"))
    printed = shlex.split(" ".join(line.rstrip("\\") for line in lines[begin + 1 : end]).replace("1G", "64M"))
    ours = ["-accel", "tcg", "-nodefaults", "-display", "none"]
    return [*printed, *ours, "-device", f"isa-debug-exit,iobase={EXIT_PORT:#x},iosize=4"]


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
        command = [qemu, *arguments(serve, short_dir / "vm.sock")]
        done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
        assert done.returncode == 2 * EXIT_DONE + 1, f"{done.stderr}\n{serve.log_tail()}"
        assert serve.volume("unexport", "disk").returncode == 0
        with context.open("disk", os.O_RDONLY) as volume:
            volume.read(buffer, 512, 1024)
            assert bytes(buffer.data[:512]) == bytes(byte ^ 0xFF for byte in data)


# Writes the sectors from 1 on, each with its number in front, one after the other.
_WRITER = bytes.fromhex(
    "31c0 8ed8 8ec0 8ed0 bc007c fb 8816 417c"  # segments, stack, sti; mov [0x7c41], dl
    "66a1 507c 66a3 0080"  # again: mov eax, [0x7c50]; mov [0x8000], eax
    "8a16 417c be487c b80043 cd13 7214"  # mov dl, [0x7c41]; mov si, 0x7c48; mov ax, 0x4300 (write); int 0x13; jc failed
    "66ff06 507c 66a1 507c 663b06 587c 75da"  # inc dword [0x7c50]; mov eax, [0x7c50]; cmp eax, [0x7c58]; jne again
    "b020 eb02 b07f baf400 ee f4"  # mov al, 0x20; jmp end; failed: mov al, 0x7f; end: mov dx, 0xf4; out dx, al; hlt
)
assert len(_WRITER) == 0x41
WRITES, KILL_AT = 500, (100, 300)


def test_the_death_of_the_volume_server(short_dir: Path) -> None:
    """kill -9 of the volume server, twice while the machine writes: every write of it succeeds, and all are there.

    The export stands in vpool.json; `serve` starts the server anew, and QEMU (reconnect=1) finds it.
    """
    qemu = require_tool("qemu-system-x86_64", "qemu-system-x86")
    path, state = short_dir / "vm.sock", short_dir / "s"
    vpool = {
        "filesystem": {"fs_enable_shm_interface": True},
        "backend_connection_manager": {"local_connection_path": str(state / "pool")},
        "shm_server": {"exports": [{"volume": "disk", "vhost_user": str(path)}]},
    }
    with Serve(state, {"disk": "16M"}, vpool=vpool) as serve:
        processes.wait_until(path.exists, 10, "the export")
        packet = struct.pack("<BBHHHQI", 16, 0, 1, MEMORY, 0, 1, WRITES)
        with Context(state_dir=state) as context:
            context.unexport_volume("disk")
            with context.open("disk") as volume:
                buffer = context.allocate(512)
                buffer.data[:] = (_WRITER.ljust(0x48, b"\0") + packet).ljust(510, b"\0") + b"\x55\xaa"
                volume.write(buffer, 512, 0)
        command = [qemu, *arguments(serve, path)]
        machine = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        try:
            for number in KILL_AT:
                processes.wait_until(lambda at=number: sector_is_written(state, at), 20, f"sector {number}")
                old = serve.kill_server()
                serve.wait_new_server(old)
            output, _ = machine.communicate(timeout=40)
        finally:
            machine.kill()
            machine.wait()
        assert machine.returncode == 2 * EXIT_DONE + 1, f"{output}\n{serve.log_tail()}"
        file = (state / "pool" / "volumes" / "disk.raw").read_bytes()
        assert [struct.unpack_from("<I", file, 512 * at)[0] for at in range(1, WRITES)] == list(range(1, WRITES))


def sector_is_written(state: Path, number: int) -> bool:
    """Looked up in the store's own file, which the page cache keeps true."""
    with (state / "pool" / "volumes" / "disk.raw").open("rb") as file:
        file.seek(512 * number)
        return struct.unpack("<I", file.read(4))[0] == number
