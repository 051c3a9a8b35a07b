"""examples/nbd_server.py before the NBD clients of other projects, and before bytes of our own."""

from __future__ import annotations

import json
import random
import select
import socket
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests import tools
from tests.interfaces.mounts import MIB, ROOT, shell
from tests.interop import initiators
from tests.storage.server_process import ServerProcess

READ, WRITE, DISCONNECT, FLUSH, TRIM = range(5)
FUA = 1
EINVAL, ENOSPC = 22, 28


@pytest.fixture
def context(short_dir: Path) -> Iterator[Context]:
    """Of a volume server with the volume "demo" of 16 MiB."""
    server = ServerProcess(short_dir)
    server.start()
    try:
        with Context(server.socket_path) as made:
            made.create_volume("demo", 16 * MIB)
            yield made
    finally:
        server.stop()


@pytest.fixture
def url(context: Context, short_dir: Path) -> Iterator[str]:
    command = [sys.executable, str(ROOT / "examples/nbd_server.py"), "0", str(short_dir / "shm.sock")]
    with subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True) as made:
        try:
            assert made.stdout is not None
            assert select.select([made.stdout], [], [], 20)[0]
            yield made.stdout.readline().strip()
        finally:
            made.kill()


def read(context: Context, offset: int, length: int) -> bytes:
    with context.open("demo", 0) as volume:
        buffer = context.allocate(length)
        assert volume.read(buffer, length, offset) == length
        data = bytes(buffer.data)
        context.deallocate(buffer)
    return data


def test_nbdinfo(context: Context, url: str) -> None:
    """nbdinfo sees the size and every ability, and lists the volumes."""
    context.create_volume("other", MIB)
    nbdinfo = tools.require_tool("nbdinfo", "libnbd-bin")
    (export,) = json.loads(shell(nbdinfo, "--json", f"{url}/demo"))["exports"]
    assert export["export-size"] == 16 * MIB
    for ability in ("can_flush", "can_fua", "can_trim", "can_zero", "can_multi_conn"):
        assert export[ability] is True, ability
    listed = json.loads(shell(nbdinfo, "--list", "--json", url))["exports"]
    assert {each["export-name"] for each in listed} == {"demo", "other"}
    assert "No such file" in shell(nbdinfo, f"{url}/nowhere", code=1)


def test_nbdcopy_there_and_back(context: Context, url: str, short_dir: Path) -> None:
    """nbdcopy, over four connections, loses no byte in either direction."""
    nbdcopy = tools.require_tool("nbdcopy", "libnbd-bin")
    source, back = short_dir / "source", short_dir / "back"
    source.write_bytes(random.Random(4).randbytes(10 * MIB) + bytes(6 * MIB))
    shell(nbdcopy, "--connections=4", "--flush", source, f"{url}/demo")
    assert read(context, 0, 4 * MIB) == source.read_bytes()[: 4 * MIB]
    shell(nbdcopy, "--connections=4", f"{url}/demo", back)
    assert back.read_bytes() == source.read_bytes()
    assert context.stat_volume("demo").allocated_bytes <= 10 * MIB


def test_qemu(context: Context, url: str) -> None:
    """qemu-io writes, zeroes, discards, flushes and reads; qemu-img knows the size and compares."""
    said = initiators.qemu_io(
        f"{url}/demo", "write -P 0x5a 0 8M", "write -f -P 0x66 513 1000", "write -z 1M 1M", "discard 2M 2M", "flush",
        "read -P 0x66 513 1000", "read -P 0 1M 3M", "read -P 0x5a 4M 4M",
    )  # fmt: skip
    assert "8 MiB" in said
    assert "virtual size: 16 MiB" in initiators.run("qemu-img", "info", f"{url}/demo")
    assert read(context, 513, 1000) == b"\x66" * 1000
    assert context.stat_volume("demo").allocated_bytes < 7 * MIB


class Raw:
    """A client that says what it likes."""

    def __init__(self, url: str) -> None:
        host, port = url.removeprefix("nbd://").split(":")
        self.socket = socket.create_connection((host, int(port)), 20)
        self.stream = self.socket.makefile("rwb")
        assert self.stream.read(18) == b"NBDMAGICIHAVEOPT\0\1"

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.stream.close()
        self.socket.close()

    def export_name(self, name: bytes) -> bytes:
        self.send(struct.pack(">I8sII", 1, b"IHAVEOPT", 1, len(name)) + name)
        return self.stream.read(134)

    def send(self, data: bytes) -> None:
        self.stream.write(data)
        self.stream.flush()

    def ask(self, command: int, offset: int, length: int, data: bytes = b"", flags: int = 0) -> tuple[int, bytes]:
        self.send(struct.pack(">IHHQQI", 0x25609513, flags, command, 77, offset, length) + data)
        magic, error, cookie = struct.unpack(">IIQ", self.stream.read(16))
        assert (magic, cookie) == (0x67446698, 77)
        return error, self.stream.read(length) if command == READ and not error else b""


def test_the_old_way_in(url: str) -> None:
    """NBD_OPT_EXPORT_NAME, with its 124 zeroes; a name that is none ends the connection."""
    with Raw(url) as raw:
        assert int.from_bytes(raw.export_name(b"demo")[:8], "big") == 16 * MIB
        assert raw.ask(WRITE, 5, 3, b"abc", FUA) == (0, b"")
        assert raw.ask(READ, 4, 5) == (0, b"\0abc\0")
    with Raw(url) as raw:
        assert raw.export_name(b"nowhere") == b""


def test_what_goes_wrong_is_an_answer(url: str) -> None:
    """Across the end: EINVAL for a read, ENOSPC for a write; an unknown command: EINVAL. The connection goes on."""
    with Raw(url) as raw:
        raw.export_name(b"demo")
        assert raw.ask(READ, 16 * MIB - 1, 2)[0] == EINVAL
        assert raw.ask(WRITE, 16 * MIB - 1, 2, b"xx")[0] == ENOSPC
        assert raw.ask(9, 0, 512)[0] == EINVAL
        assert raw.ask(TRIM, 0, MIB, flags=FUA)[0] == 0
        assert raw.ask(FLUSH, 0, 0)[0] == 0
        raw.send(struct.pack(">IHHQQI", 0x25609513, 0, DISCONNECT, 0, 0, 0))
        assert raw.stream.read(1) == b""


@pytest.mark.parametrize(
    "garbage",
    [b"", b"\0\0\0\1" + b"GETAHEAD" + bytes(8), b"\0\0\0\1" + struct.pack(">8sII", b"IHAVEOPT", 7, 1 << 30)],
    ids=["nothing", "no option", "a long option"],
)
def test_garbage_costs_its_connection(url: str, garbage: bytes) -> None:
    """… and no other."""
    with Raw(url) as raw, Raw(url) as other:
        raw.send(garbage)
        raw.socket.shutdown(socket.SHUT_WR)
        assert raw.stream.read(1) == b""
        assert len(other.export_name(b"demo")) == 134
