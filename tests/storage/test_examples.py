"""The examples run, and the documentation shows them as they are."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from pathlib import Path

from iscsi_ovs.shm_client import Context
from tests.storage.server_process import ROOT, ServerProcess


def test_the_documentation_shows_the_example_as_it_is() -> None:
    """docs/CLIENT.md holds examples/line_server.py, letter by letter."""
    assert (ROOT / "examples/line_server.py").read_text() in (ROOT / "docs/CLIENT.md").read_text()


def test_the_line_server_serves(short_dir: Path) -> None:
    """What one client writes, another reads, and the volume holds; errors are answers."""
    server = ServerProcess(short_dir)
    server.start()
    with Context(server.socket_path) as context:
        context.create_volume("demo", 1 << 20)
        path = short_dir / "line.sock"
        command = [sys.executable, str(ROOT / "examples/line_server.py"), "demo", str(path), str(server.socket_path)]
        example = subprocess.Popen(command, cwd=ROOT, env={"PYTHONPATH": str(ROOT)})
        try:
            data = random.Random(5).randbytes(300_000)
            talk(path, b"WRITE 1234 300000\n" + data + b"FLUSH\n", b"OK 300000\nOK 0\n")
            talk(path, b"READ 1234 300000\n", b"OK 300000\n" + data)
            talk(path, b"READ 1048570 512\nREAD 0 0\n", b"OK 6\n" + bytes(6) + b"ERROR 22\n")
            talk(path, b"WRITE 1048570 7\nseven..", b"ERROR 27\n")
        finally:
            example.kill()
            example.wait()
        with context.open("demo") as volume:
            buffer = context.allocate(300_000)
            volume.read(buffer, 300_000, 1234)
            assert buffer.data == data
    server.stop()


def talk(path: Path, request: bytes, answer: bytes) -> None:
    deadline = time.monotonic() + 20
    with socket.socket(socket.AF_UNIX) as connection:
        while True:
            try:
                connection.connect(str(path))
                break
            except (FileNotFoundError, ConnectionRefusedError):
                assert time.monotonic() < deadline
                time.sleep(0.01)
        connection.sendall(request)
        with connection.makefile("rb") as stream:
            assert stream.read(len(answer)) == answer
