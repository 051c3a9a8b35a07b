"""SANITIZE: the work, who may start it, what it refuses meanwhile, restarts in the middle, failures and ways out."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from shm_server.abi import control, ring
from shm_server.abi.layout import Opcode
from shm_server.runtime import Runtime
from shm_server.volumes import sanitizing
from shm_server.volumes.sanitizing import Sanitizing
from shm_server.volumes.volume import Volume
from tests.shm_server.abi_client import AbiClient, RefusedError
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.test_volume import make

MIB = 1 << 20
SIZE = 16 * MIB
Connect = Callable[..., AbiClient]
Start = Callable[..., ServerProcess]


# The work -----------------------------------------------------------------------------------------------------------


def do_work(run: Callable[..., Any], volume: Volume, order: Sanitizing) -> list[int]:
    done: list[int] = []

    async def checkpoint(done_bytes: int) -> None:
        done.append(done_bytes)

    volume.ranges.shut(OSError(errno.EBUSY, "sanitizing"))
    run(sanitizing.work(volume, order, checkpoint))
    volume.ranges.open()
    return done


def content(run: Callable[..., Any], volume: Volume) -> bytes:
    whole = bytearray(volume.size_bytes)
    run(volume.read([memoryview(whole)], 0, len(whole)))
    return bytes(whole)


def test_a_pace(run: Callable[..., Any], runtime: Runtime, tmp_path: Path) -> None:
    """An overwrite takes no more of the disk than it may; each second's share is synced, and counts as progress."""
    volume = make(runtime, tmp_path, "memory", SIZE)
    order = Sanitizing("u", sanitizing.OVERWRITE, SIZE, (b"abc",))
    done: list[float] = []

    async def checkpoint(done_bytes: int) -> None:
        done.append(runtime.clock())

    volume.ranges.shut(OSError(errno.EBUSY, "sanitizing"))
    run(sanitizing.work(volume, order, checkpoint, bytes_per_s=8 * MIB))
    assert len(done) == 3  # two shares of 8 MiB but what does not fit whole patterns, and the rest
    assert done[1] - done[0] >= 0.9
    volume.ranges.open()
    assert content(run, volume) == (b"abc" * SIZE)[:SIZE]


@pytest.mark.parametrize("kind", ["memory", "file"])
@pytest.mark.parametrize(
    "patterns",
    [(b"\0",), (b"abc",), (b"\x0f", b"\xf0"), (b"xxxxx", b"yyyyy", b"vwxyz"), (os.urandom(4096), os.urandom(4096))],
    ids=["zeros", "three bytes", "two passes", "three passes", "blocks"],
)
def test_overwrite(
    run: Callable[..., Any],
    runtime: Runtime,
    tmp_path: Path,
    kind: str,
    patterns: tuple[bytes, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The pattern from the first byte to the last, whatever its length; progress after each checkpoint."""
    monkeypatch.setattr(sanitizing, "CHECKPOINT_BYTES", 2 * MIB)
    size = 5 * MIB + 4096
    volume = make(runtime, tmp_path, kind, size)
    run(volume.write([memoryview(os.urandom(MIB))], 3 * MIB, MIB, is_durable=False))
    order = Sanitizing("u", "overwrite", size, patterns)
    order.check()
    done = do_work(run, volume, order)
    last = patterns[-1]
    assert content(run, volume) == (last * (size // len(last) + 1))[:size]
    assert len(done) == 3 * len(patterns)
    assert done[-1] == len(patterns) * size
    assert volume.store.allocated_bytes() >= size
    volume.close()


def test_each_pass_is_written(
    run: Callable[..., Any], runtime: Runtime, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In order; an operation that was interrupted goes on in the middle."""
    volume = make(runtime, tmp_path, "memory", 4 * MIB)
    written: list[tuple[int, int]] = []
    fill = volume.store.fill

    def count(pattern: memoryview, offset: int) -> int:
        written.append((pattern[0], offset // MIB))
        return fill(pattern, offset)

    monkeypatch.setattr(volume.store, "fill", count)
    order = Sanitizing("u", "overwrite", 4 * MIB, (b"\xff", b"\0", b"\xff"))
    do_work(run, volume, order)
    assert written == [(value, at) for value in (0xFF, 0, 0xFF) for at in range(4)]
    written.clear()
    do_work(run, volume, replace(order, done_bytes=6 * MIB))
    assert written == [(0, 2), (0, 3), *((0xFF, at) for at in range(4))]
    volume.close()


@pytest.mark.parametrize("kind", ["memory", "file"])
def test_block_erase(run: Callable[..., Any], runtime: Runtime, tmp_path: Path, kind: str) -> None:
    """All zeros, no space taken."""
    volume = make(runtime, tmp_path, kind, SIZE)
    run(volume.write([memoryview(os.urandom(4 * MIB))], 0, 4 * MIB, is_durable=True))
    assert do_work(run, volume, Sanitizing("u", "block erase", SIZE)) == [SIZE]
    assert content(run, volume) == bytes(SIZE)
    assert volume.store.allocated_bytes() == 0
    volume.close()


def test_progress() -> None:
    """In 65536ths over all passes; never the whole before the end."""
    order = Sanitizing("u", "overwrite", 1000, (b"x", b"y"))
    parts = [replace(order, done_bytes=done).progress for done in (0, 1, 500, 1000, 1999, 2000)]
    assert parts == [0, 32, 16384, 32768, 65503, 65535]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "cryptographic erase"},
        {"kind": "overwrite", "patterns": []},
        {"kind": "overwrite", "patterns": [b""]},
        {"kind": "overwrite", "patterns": [bytes(4097)]},
        {"kind": "overwrite", "patterns": [b"x", b"xy"]},
        {"kind": "overwrite", "patterns": [b"x"] * 32},
        {"kind": "block erase", "patterns": [b"x"]},
    ],
)
def test_what_cannot_be(server: ServerProcess, connect: Connect, wrong: dict[str, Any]) -> None:
    """EINVAL, and the volume goes on."""
    client = connect(server)
    client.create()
    with pytest.raises(RefusedError) as caught:
        client.call(control.Sanitize(client.id(), "demo", **wrong))
    assert caught.value.errno == errno.EINVAL
    client.attach()
    client.open()
    assert client.write(0, b"x") == 1


# Through the server -------------------------------------------------------------------------------------------------


def slow(seconds: float, **more: int) -> dict[str, Any]:
    """A server whose flushes take long: a sanitize operation has time to be looked at."""
    return {"delay": [{"operations": ["flush"], "seconds": seconds, **more}]}


def sanitize(client: AbiClient, kind: str = "overwrite", **more: Any) -> control.VolumeInfo:
    if kind == "overwrite":
        more.setdefault("patterns", [b"\xa5"])
    return client.call(control.Sanitize(client.id(), "demo", kind, **more)).info


def stat(client: AbiClient) -> control.VolumeInfo:
    return client.call(control.Stat(client.id(), "demo")).info


def wait_until_over(client: AbiClient) -> control.VolumeInfo:
    while (info := stat(client)).sanitize is not None:
        time.sleep(0.005)
    return info


def holder(server: ServerProcess, connect: Connect) -> AbiClient:
    client = connect(server)
    client.create("demo", SIZE)
    client.attach()
    client.open("demo", "rw", "an owner")
    return client


@pytest.mark.parametrize("store", ["file", "memory"])
def test_data_is_refused_while_it_runs(start_server: Start, connect: Connect, store: str) -> None:
    """Every data operation of every handle, also of one opened meanwhile, is EBUSY; then all is as it was, but
    for the data. Beginning and end are told to holders and subscribers."""
    server = start_server(shm_server={"store": store, **slow(0.2, count=1)})
    client = holder(server, connect)
    subscriber = connect(server)
    subscriber.call(control.Subscribe(subscriber.id()))
    client.write(0, b"secret")
    info = sanitize(client)
    assert info.sanitize == 0
    reader = connect(server, "demo", "r")
    source = reader.open("demo", "r").handle
    for opcode, length, parts in [
        (Opcode.READ, 512, [(0, 0, 512)]),
        (Opcode.READ, 512, [(0, 0, 256), (1, 0, 256)]),
        (Opcode.WRITE, 512, [(0, 0, 512)]),
        (Opcode.DISCARD, 512, []),
        (Opcode.WRITE_ZEROES, 512, []),
        (Opcode.WRITE_SAME, 512, [(0, 0, 512)]),
        (Opcode.COMPARE, 512, []),
        (Opcode.COMPARE_AND_WRITE, 512, [(0, 0, 1024)]),
        (Opcode.OR_WRITE, 512, [(0, 0, 512)]),
        (Opcode.WRITE_ATOMIC, 512, [(0, 0, 512)]),
        (Opcode.EXTENTS, 512, []),
        (Opcode.COPY, 512, ring.copy_source(4096, client.handle, client.epoch)),
    ]:
        assert client.wait(client.push(opcode, 0, length, parts))[1] == errno.EBUSY
    assert reader.wait(reader.push(Opcode.READ, 0, 512, [(0, 0, 512)], handle=source))[1] == errno.EBUSY
    assert stat(client).sanitize == 0, "it was over before all this was asked"
    with pytest.raises(RefusedError, match="is being sanitized"):
        sanitize(client)
    with pytest.raises(RefusedError, match="sanitized"):
        client.call(control.Resize(client.id(), "demo", 2 * SIZE))
    info = wait_until_over(client)
    assert (info.sanitize, info.sanitize_failed) == (None, False)
    assert client.read(0, 1 << 20) == b"\xa5" * (1 << 20)
    assert client.write(0, b"new") == 3
    for one in (client, subscriber):
        told = [one.event(), one.event()]
        assert [event.info.sanitize for event in told if isinstance(event, control.VolumeChanged)] == [0, None]


def test_a_volume_that_nobody_holds(server: ServerProcess, connect: Connect) -> None:
    """It is opened for the operation and free again afterwards."""
    client = connect(server)
    client.create("demo", SIZE)
    sanitize(client, "block erase")
    wait_until_over(client)
    client.call(control.Remove(client.id(), "demo"))


def test_who_may(start_server: Start, connect: Connect) -> None:
    """Not beside somebody else's writer; not a volume that is not there; nor may one be removed meanwhile."""
    server = start_server(shm_server=slow(0.2, count=1))
    holder(server, connect)
    other = connect(server)
    with pytest.raises(RefusedError, match="held by") as caught:
        sanitize(other)
    assert caught.value.errno == errno.EBUSY
    with pytest.raises(RefusedError) as caught:
        other.call(control.Sanitize(other.id(), "missing", "block erase"))
    assert caught.value.errno == errno.ENOENT
    other.create("idle", SIZE)
    other.call(control.Sanitize(other.id(), "idle", "block erase"))
    with pytest.raises(RefusedError, match="held by a sanitize operation"):
        other.call(control.Remove(other.id(), "idle"))


def test_what_was_under_way_is_over_before_it_begins(start_server: Start, connect: Connect) -> None:
    """A write that a thread is doing does not land on what was overwritten."""
    delay = [{"operations": ["write"], "offset": 4 * MIB, "length": 512, "seconds": 0.2, "count": 1}]
    client = holder(start_server(shm_server={"delay": delay}), connect)
    client.slots[:512] = b"L" * 512
    late = client.push(Opcode.WRITE, 4 * MIB, 512, [(0, 0, 512)])
    client.publish()
    while not any(info.in_flight for info in client.call(control.ListHandles(client.id())).infos):
        pass
    sanitize(client)
    assert client.wait(late)[1] == 0
    wait_until_over(client)
    assert client.read(4 * MIB, 512) == b"\xa5" * 512


@pytest.mark.parametrize("is_killed", [True, False])
def test_it_goes_on_after_a_restart(start_server: Start, connect: Connect, is_killed: bool) -> None:
    """The server is killed or stopped amid a three-pass overwrite; its successor refuses data, and ends it."""
    server = start_server(shm_server=slow(0.08))
    client = connect(server)
    client.create("demo", 128 * MIB)
    client.attach()
    client.open()
    client.write(100 * MIB, b"secret")
    sanitize(client, patterns=[b"\x55", b"\xaa", b"\x55"])
    while not (progress := stat(client).sanitize):
        assert progress is not None
        time.sleep(0.01)
    if is_killed:
        server.kill()
    else:
        assert server.stop() == 0
    server.start()
    client = connect(server)
    info = stat(client)
    assert info.sanitize is not None
    assert info.sanitize >= progress
    client.attach()
    client.open()
    assert client.wait(client.push(Opcode.READ, 0, 512, [(0, 0, 512)]))[1] == errno.EBUSY
    wait_until_over(client)
    for offset in (0, 64 * MIB, 100 * MIB, 128 * MIB - 65536):
        assert client.read(offset, 65536) == b"\x55" * 65536


def test_a_failure_stays_until_the_next(start_server: Start, connect: Connect) -> None:
    """EIO of the store: reads and writes are refused from then on, over a restart too; without the right to exit only
    another operation without it helps."""
    delay = [{"operations": ["write"], "offset": 9 * MIB, "length": 512, "error": errno.EIO, "count": 1}]
    server = start_server(shm_server={"delay": delay})
    client = holder(server, connect)
    sanitize(client)
    info = wait_until_over(client)
    assert (info.sanitize, info.sanitize_failed, info.can_exit_sanitize) == (None, True, False)
    server.kill()
    server.start()
    client = connect(server)
    client.attach()
    opened = client.open()
    assert (opened.info.sanitize_failed, opened.info.sanitize) == (True, None)
    assert client.wait(client.push(Opcode.READ, 0, 512, [(0, 0, 512)]))[1] == errno.EBUSY
    for kind, more in [("exit failure mode", {}), ("overwrite", {"may_exit": True})]:
        with pytest.raises(RefusedError) as caught:
            sanitize(client, kind, **more)
        assert caught.value.errno == errno.EPERM
    sanitize(client)
    assert wait_until_over(client).sanitize_failed  # the disk fails once more: the rule counts anew
    sanitize(client, "block erase")
    assert not wait_until_over(client).sanitize_failed
    assert client.read(0, 512) == bytes(512)


def test_exit_failure_mode(start_server: Start, connect: Connect) -> None:
    """Where the failed one allowed it, the volume is used as it is; without a failure nothing happens."""
    delay = [{"operations": ["write"], "offset": 9 * MIB, "length": 512, "error": errno.EIO, "count": 1}]
    client = holder(start_server(shm_server={"delay": delay}), connect)
    assert sanitize(client, "exit failure mode") == stat(client)
    sanitize(client, may_exit=True)
    assert wait_until_over(client).can_exit_sanitize
    info = sanitize(client, "exit failure mode")
    assert (info.sanitize, info.sanitize_failed) == (None, False)
    assert client.read(0, 512) == b"\xa5" * 512
    assert client.read(10 * MIB, 512) == bytes(512)


def test_other_volumes_are_served_meanwhile(start_server: Start, connect: Connect) -> None:
    """4 KiB reads of another volume, while one of 1 GiB is overwritten, all come within 100 ms."""
    server = start_server(shm_server={"store": "memory"})
    client = connect(server)
    client.create("demo", 1 << 30)
    client.create("small", MIB)
    client.attach()
    client.open("small")
    sanitize(client)
    longest = 0.0
    reads = 0
    while stat(client).sanitize is not None:
        begun = time.monotonic()
        client.read(0, 4096)
        longest = max(longest, time.monotonic() - begun)
        reads += 1
    assert reads > 20
    assert longest < 0.1
