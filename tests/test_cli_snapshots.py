"""`iscsi-ovs snapshot` and `volume clone` as operators and scripts see them: words, exit codes, JSON, questions."""

from __future__ import annotations

import base64
import itertools
import json
import os
import pty
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iscsi_ovs import pdu
from iscsi_ovs.shm_client import Context, Volume
from iscsi_ovs.testing.results import Received
from iscsi_ovs.testing.socket_initiator import SocketInitiator
from tests.interop.serving import Serve, iscsi_ovs
from tests.test_cli import BUSY, DONE, FAILED, NOT_FOUND, ROOT, USAGE, run, session

Call = Callable[..., "subprocess.CompletedProcess[str]"]
_numbers = itertools.count(1)


@pytest.fixture
def name(context: Context) -> str:
    """Of a new volume."""
    made = f"w{next(_numbers)}"
    context.create_volume(made, 1 << 20)
    return made


@pytest.fixture
def snapshot(serve: Serve) -> Call:
    def call(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("snapshot", command, "--state-dir", serve.state_dir, *arguments)

    return call


def put(context: Context, name: str, data: bytes) -> None:
    with context.open(name) as volume:
        buffer = context.allocate(len(data))
        buffer.data[:] = data
        volume.write(buffer, len(data), 0)
        context.deallocate(buffer)


def get(context: Context, name: str) -> bytes:
    with context.open(name) as volume:
        return _get(context, volume)


def _get(context: Context, volume: Volume) -> bytes:
    buffer = context.allocate(5)
    volume.read(buffer, 5, 0)
    found = bytes(buffer.data[:5])
    context.deallocate(buffer)
    return found


def test_keep_ruin_and_go_back(serve: Serve, context: Context, snapshot: Call, name: str) -> None:
    """What was there at the snapshot is there again, and what came later is gone; a clone goes its own way."""
    put(context, name, b"first")
    assert snapshot("create", name, "monday").returncode == DONE
    put(context, name, b"wrong")
    assert snapshot("create", name, "tuesday").returncode == DONE
    cloned = run("volume", "clone", "--state-dir", serve.state_dir, name, "monday", f"{name}.clone")
    assert (cloned.returncode, cloned.stdout, cloned.stderr) == (DONE, "", "")
    assert get(context, f"{name}.clone") == b"first"
    put(context, f"{name}.clone", b"clone")
    assert snapshot("rollback", name, "monday").returncode == DONE
    assert (get(context, name), get(context, f"{name}.clone")) == (b"first", b"clone")
    assert [row["name"] for row in json.loads(snapshot("list", name, "-o", "json").stdout)] == ["monday"]
    uuids = {context.stat_volume(each).uuid for each in (name, f"{name}.clone")}
    assert len(uuids) == 2


def test_list_and_show(context: Context, snapshot: Call, name: str) -> None:
    """A table, the oldest first, an object, or lines; times are UTC."""
    assert snapshot("list", name).stdout.split() == ["NAME", "SIZE", "CREATED", "LABELS"]
    snapshot("create", name, "b")
    snapshot("create", name, "a")
    rows = [line.split() for line in snapshot("list", name).stdout.splitlines()]
    assert [row[:2] for row in rows] == [["NAME", "SIZE"], ["b", "1M"], ["a", "1M"]]
    row = json.loads(snapshot("show", name, "a", "-o", "json").stdout)
    kept = {"uuid": row["uuid"], "labels": {}, "metadata": "", "handles": []}
    assert row == {"name": "a", "size_bytes": 1 << 20, "created": rows[2][2], **kept}
    assert re.fullmatch(r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\d\+00:00", row["created"])
    with context.open(f"{name}@a", os.O_RDONLY):
        lines = snapshot("show", name, "a").stdout.splitlines()
    assert lines[0] == "name: a"
    assert re.fullmatch(r"handle \d+: shm_client pid \d+, r, read 0 bytes, written 0 bytes", lines[-1])


def test_labels_and_metadata(snapshot: Call, name: str, tmp_path: Path) -> None:
    """They are given with a snapshot or afterwards, shown, and bounded; metadata in JSON is Base64."""
    file = tmp_path / "metadata"
    file.write_bytes(bytes(range(256)))
    words = ["--label", "owner=alice", "--label", "note=a = b"]
    assert snapshot("create", name, "s", *words, "--metadata", str(file)).returncode == DONE
    assert snapshot("list", name).stdout.splitlines()[1].endswith("note=a = b, owner=alice")
    assert snapshot("show", name, "s").stdout.splitlines()[-2:] == [
        "labels: note=a = b, owner=alice",
        "metadata: 256 bytes",
    ]
    file.write_bytes(b"new")
    assert snapshot("label", name, "s", "--remove", "note", "--label", "owner=bob").returncode == DONE
    assert snapshot("label", name, "s", "--metadata", str(file)).returncode == DONE
    (row,) = json.loads(snapshot("list", name, "-o", "json").stdout)
    assert (row["labels"], row["metadata"]) == ({"owner": "bob"}, base64.b64encode(b"new").decode())
    file.write_bytes(bytes(4096))
    refused = snapshot("create", name, "t", "--label", "a=b", "--metadata", str(file))
    assert refused.returncode == USAGE
    assert "at most 4096" in refused.stderr
    for wrong in (["--label", "a"], ["--label", "a=1", "--label", "a=2"]):
        assert snapshot("create", name, "t", *wrong).returncode == USAGE
    assert snapshot("label", name, "s", "--label", "a=1", "--remove", "a").returncode == USAGE
    assert snapshot("label", name, "t", "--label", "a=1").returncode == NOT_FOUND


def test_refusals(serve: Serve, context: Context, snapshot: Call, name: str) -> None:
    """3 for what is not there, 4 for what is there already, is held, or has clones; each with its reason."""
    assert snapshot("create", name, "s").returncode == DONE
    for command, arguments, code, words in (
        ("create", (name, "s"), BUSY, "there is a snapshot s already"),
        ("create", (name, "-"), USAGE, "no name of a snapshot"),
        ("create", ("nothing", "s"), NOT_FOUND, "no volume nothing"),
        ("show", (name, "t"), NOT_FOUND, "no snapshot t"),
        ("remove", (name, "t"), NOT_FOUND, "no snapshot t"),
        ("rollback", (name, "t"), NOT_FOUND, "no snapshot t"),
        ("list", (), USAGE, "Missing argument 'VOLUME'"),
    ):
        said = snapshot(command, *arguments)
        assert (said.returncode, said.stdout) == (code, ""), (command, said.stderr)
        assert words in said.stderr
    initiator = session(serve, name)
    said = snapshot("rollback", name, "s")
    assert (said.returncode, "is held by iscsi target" in said.stderr) == (BUSY, True), said.stderr
    initiator.close()
    context.clone_volume(name, "s", f"{name}.clone")
    for arguments in (("snapshot", "remove", name, "s"), ("volume", "remove", name)):
        said = run(*arguments, "--state-dir", serve.state_dir)
        assert said.returncode == BUSY, said.stderr
        assert f": {name}.clone\n" in said.stderr or "is held by" in said.stderr


def test_a_terminal_is_asked(serve: Serve, context: Context, snapshot: Call, name: str) -> None:
    """Only "y" goes on; --yes asks nothing."""
    snapshot("create", name, "s")
    for answer, extra, is_asked, left in ((b"n\n", (), True, 1), (b"\n", ("--yes",), False, 0)):
        master, slave = pty.openpty()
        os.write(master, answer)
        ended = subprocess.run(
            iscsi_ovs("snapshot", "remove", "--state-dir", str(serve.state_dir), name, "s", *extra),
            stdin=slave, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False,
        )  # fmt: skip
        os.close(master)
        os.close(slave)
        assert ("Forget snapshot s" in ended.stderr) is is_asked
        assert (ended.returncode == DONE) is not is_asked
        assert len(context.list_snapshots(name)) == left


def test_who_removes_a_volume_at_a_terminal_is_asked(serve: Serve, context: Context) -> None:
    """… and a script is not."""
    context.create_volume("dear", 1 << 20)
    master, slave = pty.openpty()
    os.write(master, b"n\n")
    command = iscsi_ovs("volume", "remove", "--state-dir", str(serve.state_dir), "dear")
    ended = subprocess.run(command, stdin=slave, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False)
    os.close(master)
    os.close(slave)
    assert "Remove volume dear" in ended.stderr
    assert ended.returncode == FAILED
    assert "dear" in [found.name for found in context.list_volumes()]
    assert run("volume", "remove", "dear", "--yes", "--state-dir", str(serve.state_dir)).returncode == DONE


def test_back_by_force(serve: Serve, context: Context, snapshot: Call, name: str) -> None:
    """An initiator is logged in: exit code 4; with --force it is told and logged out, and when it comes back it reads
    the old bytes, and hears first that the medium has changed, and the size, if it has."""
    initiator = session(serve, name)
    write_block(initiator, 3, b"then")
    assert snapshot("create", name, "s").returncode == DONE
    for size_bytes in (1 << 20, 2 << 20):
        context.truncate_volume(name, size_bytes)
        write_block(initiator, 3, b"ruined")
        refused = snapshot("rollback", name, "s")
        assert (refused.returncode, "1 session" in refused.stderr) == (BUSY, True)
        assert snapshot("rollback", name, "s", "--force", "--yes").returncode == DONE
        told = drained(initiator)
        initiator.close()
        assert isinstance(told[-1].header, pdu.AsynchronousMessage)
        assert told[-1].header.async_event == pdu.ASYNC_DROP_SESSION
        initiator = session(serve, name)
        attentions = [initiator.command(TEST_UNIT_READY).additional_sense for _ in range(2)]
        assert attentions == [(0x29, 0x07), (0x28, 0x00)]
        if size_bytes > 1 << 20:
            assert initiator.command(TEST_UNIT_READY).additional_sense == (0x2A, 0x09)
        assert initiator.command(TEST_UNIT_READY).status == 0
        assert read_block(initiator, 3) == b"then"
        capacity = do(initiator, READ_CAPACITY_16, read=32)
        assert int.from_bytes(capacity[:8], "big") == (1 << 20) // 512 - 1
    initiator.close()


def drained(initiator: SocketInitiator) -> list[Received]:
    """What the target still has to say before it closes the connection."""
    told: list[Received] = []
    while True:
        try:
            told += initiator.pump()
        except EOFError:
            return told


def test_a_template_and_its_clones(serve: Serve, context: Context, name: str) -> None:
    """It is asked for on a terminal, listed as one, cloned without a snapshot's name, and not written any more: not
    even by an initiator, whose disk it is all the same."""

    def volume(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("volume", command, "--state-dir", serve.state_dir, *arguments)

    put(context, name, b"stamp")
    assert volume("clone", name, f"{name}.0").returncode == USAGE
    made = volume("template", name)
    assert (made.returncode, made.stdout, made.stderr) == (DONE, "", "")
    for number in range(2):
        assert volume("clone", name, f"{name}.{number}").returncode == DONE
    put(context, f"{name}.1", b"other")
    assert [get(context, f"{name}.{number}") for number in range(2)] == [b"stamp", b"other"]
    assert json.loads(volume("show", name, "-o", "json").stdout)["is_template"]
    assert re.search(rf"^{name} .* template +-$", volume("list").stdout, re.M)
    for arguments, code, words in (
        (("remove", name), BUSY, f"clones stand on volume {name}: {name}.0, {name}.1\n"),
        (("resize", name, "2M"), FAILED, "is a template"),
        (("clone", name), USAGE, "Missing argument"),
        (("clone", name, "a", "b", "c"), USAGE, "a volume's name"),
    ):
        said = volume(*arguments)
        assert (said.returncode, words in said.stderr) == (code, True), said.stderr
    with session(serve, name) as disk:
        assert read_block(disk, 0).startswith(b"stamp")
        assert disk.command(bytes((0x2A, *bytes(7), 1, 0)), write=bytes(512)).sense[2] == DATA_PROTECT


def test_a_clone_is_promoted_under_its_initiator(serve: Serve, context: Context, name: str) -> None:
    """It waits for the end, what the clone was made of can go then, and the session has seen nothing of it."""

    def volume(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("volume", command, "--state-dir", serve.state_dir, *arguments)

    put(context, name, b"first")
    context.set_volume_as_template(name)
    context.clone_volume(name, None, f"{name}.clone")
    with session(serve, f"{name}.clone") as disk:
        write_block(disk, 3, b"mine")
        assert volume("remove", name).returncode == BUSY
        made = volume("promote", f"{name}.clone")
        assert (made.returncode, made.stdout, made.stderr) == (DONE, "", "")
        assert volume("remove", name).returncode == DONE
        assert (read_block(disk, 0)[:5], read_block(disk, 3)) == (b"first", b"mine")
    assert volume("promote", "--cancel", f"{name}.clone").returncode == DONE
    assert volume("promote", name).returncode == NOT_FOUND


def test_another_name_is_another_target(serve: Serve, context: Context, name: str) -> None:
    """The disk under the new name is the same one, by its serial number; the old name is none any more. Not while an
    initiator is logged in."""

    def volume(command: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        return run("volume", command, "--state-dir", serve.state_dir, *arguments)

    with session(serve, name) as disk:
        serial = do(disk, INQUIRY_80, read=255)
        write_block(disk, 3, b"mine")
        said = volume("rename", name, f"{name}.b")
        assert (said.returncode, "is held by iscsi target" in said.stderr) == (BUSY, True), said.stderr
        disk.logout()
    made = volume("rename", name, f"{name}.b")
    assert (made.returncode, made.stdout, made.stderr) == (DONE, "", "")
    with session(serve, f"{name}.b") as disk:
        assert do(disk, INQUIRY_80, read=255) == serial
        assert read_block(disk, 3) == b"mine"
    assert volume("show", name).returncode == NOT_FOUND
    context.create_volume(name, 1 << 20)
    with session(serve, name) as disk:
        assert do(disk, INQUIRY_80, read=255) != serial
        assert read_block(disk, 3) == bytes(512)
    assert volume("rename", name, f"{name}.b").returncode == BUSY
    assert volume("rename", name, "Not.a.name").returncode == USAGE


DATA_PROTECT = 0x7
INQUIRY_80 = bytes((0x12, 1, 0x80, 0, 255, 0))
TEST_UNIT_READY = bytes(6)
READ_CAPACITY_16 = bytes((0x9E, 0x10, *bytes(11), 32, 0, 0))


def do(disk: SocketInitiator, cdb: bytes, **options: Any) -> bytes:
    """A command, behind the unit attentions that there are."""
    for _ in range(4):
        result = disk.command(cdb, **options)
        if result.status == 0:
            return bytes(result.data)
    raise AssertionError(f"status {result.status}, sense {result.sense.hex()}")


def write_block(disk: SocketInitiator, block: int, data: bytes) -> None:
    do(disk, bytes((0x2A, 0, *block.to_bytes(4, "big"), 0, 0, 1, 0)), write=data.ljust(512, b"."))


def read_block(disk: SocketInitiator, block: int) -> bytes:
    return do(disk, bytes((0x28, 0, *block.to_bytes(4, "big"), 0, 0, 1, 0)), read=512).rstrip(b".")


def test_a_disk_goes_back_over_iscsi(serve: Serve, context: Context, snapshot: Call, name: str) -> None:
    """Snapshots are made under a living session; after its logout the disk is rolled back, and the next session finds
    the old bytes and the old size; a clone is a disk beside it at once, with a serial number of its own."""
    initiator = session(serve, name)
    write_block(initiator, 3, b"before")
    assert snapshot("create", name, "s").returncode == DONE
    write_block(initiator, 3, b"ruined")
    assert read_block(initiator, 3) == b"ruined"
    context.truncate_volume(name, 2 << 20)
    assert run("volume", "clone", "--state-dir", serve.state_dir, name, "s", f"{name}.clone").returncode == DONE
    clone = session(serve, f"{name}.clone")
    assert read_block(clone, 3) == b"before"
    serials = [do(disk, INQUIRY_80, read=255) for disk in (initiator, clone)]
    assert serials[0] != serials[1]
    initiator.logout()
    initiator.close()
    assert snapshot("rollback", name, "s", "--yes").returncode == DONE
    with session(serve, name) as again:
        assert read_block(again, 3) == b"before"
        capacity = do(again, READ_CAPACITY_16, read=32)
        assert int.from_bytes(capacity[:8], "big") == (1 << 20) // 512 - 1
    clone.close()
