"""Deaths, delays and fences: what was acknowledged stays, what was fenced never shows, nobody waits for the stuck."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shm_server.abi import control, layout
from shm_server.abi.layout import Opcode
from tests.shm_server.abi_client import AbiClient, RefusedError, leftover_segments
from tests.shm_server.conftest import ROOT, ServerProcess

Connect = Callable[..., AbiClient]
Start = Callable[..., ServerProcess]

SLOW_S = 0.6


def slow_write(offset: int = 0, seconds: float = SLOW_S, count: int = 1) -> dict[str, object]:
    """A server section: the first ``count`` writes into the 4 KiB at ``offset`` take ``seconds``."""
    rule = {"operations": ["write"], "offset": offset, "length": 4096, "seconds": seconds, "count": count}
    return {"delay": [rule]}


def hold(client: AbiClient, name: str = "demo") -> AbiClient:
    client.create(name)
    client.attach()
    client.open(name)
    return client


def wait_until_started(client: AbiClient, count: int = 1) -> None:
    """Until so many operations on "demo" are in flight."""
    while True:
        infos = client.call(control.ListHandles(client.id())).infos
        if sum(info.in_flight for info in infos if info.volume == "demo") >= count:
            return


CLIENT = """
import sys, time
from tests.shm_server.abi_client import AbiClient
from shm_server.abi.layout import Opcode
client = AbiClient(sys.argv[1], "the victim")
client.attach()
client.open("demo")
client.slots[:4096] = b"L" * 4096
if "write" in sys.argv:
    client.push(Opcode.WRITE, 0, 4096, [(0, 0, 4096)])
    client.publish()
print("holding", flush=True)
time.sleep(600)
"""


def start_victim(server: ServerProcess, *more: str) -> subprocess.Popen[str]:
    """Another process that holds the volume "demo"."""
    command = [sys.executable, "-c", CLIENT, str(server.socket_path), *more]
    victim = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert victim.stdout is not None
    assert victim.stdout.readline() == "holding\n"
    return victim


def kill(victim: subprocess.Popen[str]) -> None:
    victim.kill()
    victim.communicate()


def test_kill_9_of_a_client_frees_its_volumes(server: ServerProcess, connect: Connect) -> None:
    """As soon as the server hears of it, and its segment too."""
    client = connect(server)
    client.create()
    client.attach()
    victim = start_victim(server)
    with pytest.raises(RefusedError, match="held by the victim"):
        client.open()
    files = server.open_files()
    kill(victim)
    begun = time.monotonic()
    while True:
        try:
            client.open()
            break
        except RefusedError:  # the server has not heard of the death yet
            assert time.monotonic() - begun < 10
    assert server.open_files() < files


def test_a_late_write_never_shows_over_a_newer_one(start_server: Start, connect: Connect) -> None:
    """A write is delayed, its client killed: the next open waits for it, and what is written then stays."""
    server = start_server(shm_server=slow_write())
    client = connect(server)
    client.create()
    client.attach()
    victim = start_victim(server, "write")
    wait_until_started(client)
    begun = time.monotonic()
    kill(victim)
    while True:
        try:
            client.open()
            break
        except RefusedError:
            pass
    assert time.monotonic() - begun > SLOW_S / 2  # it has waited
    assert client.read(0, 1) == b"L"  # the late write is over
    client.write(0, b"N" * 4096)
    assert client.read(0, 4096) == b"N" * 4096


def test_a_stuck_write_stalls_nobody(start_server: Start, connect: Connect) -> None:
    """Other requests of that client, and other clients, are served meanwhile."""
    server = start_server(shm_server=slow_write())
    one, other = hold(connect(server)), hold(connect(server), "other")
    tag = one.push(Opcode.WRITE, 0, 4096, [(0, 0, 4096)])
    one.publish()
    for number in range(20):
        other.write(8192 + number, b"x")
        one.write(8192 + number, b"x")
        one.flush()
    assert tag not in one.done
    assert one.wait(tag)[1] == 0


def test_a_fence_discards_what_waits_and_waits_for_what_runs(start_server: Start, connect: Connect) -> None:
    """Twenty delayed writes: those that have started end, the rest are ECANCELED, then the fence completes."""
    server = start_server(shm_server=slow_write(count=0))
    client = hold(connect(server))
    tags = [client.push(Opcode.WRITE, 0, 512, [(0, 0, 512)]) for _ in range(20)]
    client.publish()
    wait_until_started(client, 20)
    fence = client.fence()
    late = client.push(Opcode.WRITE, 0, 512, [(0, 0, 512)], epoch=client.epoch - 1)
    assert client.wait(fence)[1] == 0
    errors = [client.done[tag][1] for tag in tags]  # it was the last
    assert 1 <= errors.count(0) < 20
    assert errors.count(errno.ECANCELED) == 20 - errors.count(0)
    assert client.wait(late)[1] == errno.ECANCELED
    assert client.read(0, 512) == bytes(512)


def test_close_waits_for_what_has_started(start_server: Start, connect: Connect) -> None:
    """The reply comes when nothing of the handle is in flight any more; the completion comes as well."""
    server = start_server(shm_server=slow_write())
    client, other = hold(connect(server)), connect(server)
    tag = client.push(Opcode.WRITE, 0, 512, [(0, 0, 512)])
    client.publish()
    wait_until_started(client)
    other.attach()
    close = control.Close(client.id(), client.handle)
    client.send(close)
    client.call(control.Stat(client.id(), "demo"))  # the server has read the Close that stands in front of this
    other.open("demo", "rw")  # waits for the closing holder instead of EBUSY
    assert client.wait(tag, 0)[1] == 0
    assert isinstance(client.reply(close.id), control.Done)


@pytest.mark.parametrize("store", ["file", "memory"])
def test_long_work_lets_others_in_and_a_fence_stops_it(start_server: Start, connect: Connect, store: str) -> None:
    """256 MiB of WRITE SAME: another client's requests go in between; fenced, it ends with ECANCELED."""
    server = start_server(shm_server={"store": store})
    client, other = connect(server), hold(connect(server), "other")
    client.create("demo", 256 << 20)
    client.attach()
    client.open()
    tags = [client.push(Opcode.WRITE_SAME, n << 25, 1 << 25, [(0, 0, 512)]) for n in range(8)]
    client.publish()
    wait_until_started(client)
    other.write(0, b"x")
    fence = client.fence()
    assert client.wait(fence)[1] == 0
    assert errno.ECANCELED in {client.wait(tag)[1] for tag in tags}


def test_a_failed_flush_is_sticky_until_the_volume_is_opened_anew(start_server: Start, connect: Connect) -> None:
    """EIO for FLUSH, FUA, WRITE through every handle; stat says failed; close and open make it good."""
    rule = {"operations": ["flush"], "error": errno.EIO, "count": 1}
    server = start_server(shm_server={"delay": [rule]})
    client = hold(connect(server))
    client.write(0, b"x" * 512)
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            client.flush()
        assert caught.value.errno == errno.EIO
    for flags in (0, layout.FLAG_FUA):
        with pytest.raises(OSError):
            client.write(0, b"y" * 512, flags=flags)
    assert client.read(0, 512) == b"x" * 512
    assert client.call(control.Stat(client.id(), "demo")).info.failed
    client.close_handle(client.handle)
    assert client.call(control.Stat(client.id(), "demo")).info.failed
    client.open()
    assert not client.call(control.Stat(client.id(), "demo")).info.failed
    client.write(0, b"y" * 512, flags=layout.FLAG_FUA)
    client.flush()


def test_sigterm_drains_what_has_started(start_server: Start, connect: Connect) -> None:
    """A delayed write that had started is done, and acknowledged, before the server ends with 0."""
    server = start_server(shm_server=slow_write())
    client = hold(connect(server))
    client.slots[:4] = b"late"
    tag = client.push(Opcode.WRITE, 0, 4, [(0, 0, 4)])
    client.publish()
    wait_until_started(client)
    assert server.stop() == 0
    assert client.wait(tag, 0)[1] == 0
    server.start()
    again = connect(server, "demo", "r")
    assert again.read(0, 4) == b"late"


def test_sigint_and_a_second_sigterm_end_it_too(server: ServerProcess) -> None:
    """However often it is told, it ends with 0."""
    server.process.send_signal(signal.SIGINT)
    assert server.stop() == 0


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_loses_nothing_that_was_acknowledged(server: ServerProcess, connect: Connect, seed: int) -> None:
    """Writes, discards and creations that completed are there after a restart; /dev/shm is clean; UUIDs are kept."""
    chance = random.Random(seed)
    client = hold(connect(server))
    uuid = client.call(control.Stat(client.id(), "demo")).info.uuid
    model: dict[int, bytes] = {}
    in_doubt = -1
    deadline = threading.Timer(0.15 + chance.random() * 0.2, server.process.kill)
    deadline.start()
    try:
        while True:
            block = in_doubt = chance.randrange(64)
            data = bytes(8192) if chance.random() < 0.2 else os.urandom(16) * 512
            if any(data):
                client.write(block * 8192, data, slot=block % 16)
            else:
                client.do(Opcode.DISCARD, block * 8192, 8192)
            model[block] = data  # it was acknowledged
    except TimeoutError:
        pass  # the server is dead
    deadline.join()
    server.process.wait(30)
    assert leftover_segments() == []
    server.start()
    again = connect(server, "demo")
    assert again.call(control.Stat(again.id(), "demo")).info.uuid == uuid
    assert model
    for block, data in model.items():
        # What was in flight when it died is old or new; everything else is what was acknowledged.
        assert block == in_doubt or again.read(block * 8192, 8192) == data


def test_creations_that_were_answered_survive_kill_9(server: ServerProcess, connect: Connect) -> None:
    """Created, resized and removed volumes are as the replies said."""
    client = connect(server)
    for number in range(10):
        client.create(f"v{number}", 4096)
    client.call(control.Resize(client.id(), "v3", 1 << 20))
    client.call(control.Remove(client.id(), "v4"))
    before = client.call(control.List(client.id())).infos
    server.kill()
    server.start()
    assert connect(server).call(control.List(99)).infos == before


def test_an_idle_server_sleeps(server: ServerProcess, demo: AbiClient) -> None:
    """Attached clients without requests cost no wake-ups (at most one a second)."""
    demo.read(0, 512)
    tasks = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/status")

    def switches() -> int:
        return int(tasks.read_text().split("voluntary_ctxt_switches:")[1].split()[0])

    demo.call(control.List(demo.id()))
    before = switches()
    time.sleep(1.0)  # nothing to await: that nothing happens is the claim
    assert switches() - before <= 2
