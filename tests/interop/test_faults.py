"""What dies, stops or starves while real initiators are at work: the volume server, an initiator, `serve`, the region.

Those that load both cores have the machine to themselves.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from iscsi_ovs import shm_client
from tests.interop import initiators, processes
from tests.interop.initiators import QemuShell, qemu_io
from tests.interop.serving import Serve, ServeError, vpool

pytestmark = pytest.mark.interop

MIB = 1 << 20
MakeServe = Callable[..., Serve]


@pytest.mark.serial
def test_server_killed_under_an_initiator(make_serve: MakeServe) -> None:
    """The volume server dies twice with writes in flight: the session lives on, nothing acknowledged is lost."""
    serve = make_serve().start()
    with QemuShell(serve.url("demo")) as shell:
        for round_number in (1, 2):  # qemu waits up to seconds before it repeats what was BUSY
            shell.ask(f"write -P {round_number} 0 1M")
            os.kill(serve.server_pid(), signal.SIGSTOP)  # so that all of these are in flight
            for place in range(16):
                shell.ask(f"aio_write -q -P {16 * round_number + place} {4 + place}M 1M")
            serve.wait_new_server(serve.kill_server())
            shell.ask("aio_flush")
            shell.ask(f"read -P {round_number} 0 1M")
            for place in range(16):
                shell.ask(f"read -P {16 * round_number + place} {4 + place}M 1M")
        assert shell.quit() == 0
    assert serve.stop() == 0


@pytest.mark.serial
def test_server_killed_under_reads(make_serve: MakeServe) -> None:
    """32 reads at a time go on, through the death of the volume server."""
    # not iscsi-perf: it repeats what was BUSY at once, and gives up after the fifth time
    serve = make_serve().start()
    qemu_io(serve.url("demo"), "write -P 9 0 32M")
    load = ["-d", "32", "-s", "4096", "-c", "50000", "-t", "none", "-f", "raw", serve.url("demo")]
    bench = initiators.spawn("qemu-img", "bench", *load)
    try:
        cpu = processes.cpu_seconds(serve.processes())
        processes.wait_until(
            lambda: processes.cpu_seconds(serve.processes()) > cpu + 0.3, 10.0, "the reads make the target work"
        )
        serve.wait_new_server(serve.kill_server())
        assert bench.poll() is None, "the reads were over before the kill"
        said, _ = bench.communicate(timeout=60)
    finally:
        processes.kill_all([bench.pid])
    assert bench.returncode == 0, said
    assert "Run completed" in said, said
    qemu_io(serve.url("demo"), "read -P 9 0 32M")


def test_acknowledged_writes_survive_everything(make_serve: MakeServe) -> None:
    """kill -9 of serve and all it started: what was acknowledged is there at the next start."""
    serve = make_serve().start()
    with QemuShell(serve.url("demo")) as shell:
        for place in range(32):
            shell.ask(f"write -P {1 + place} {place * 513}k 513k")
        serve.kill()
    serve.start()
    qemu_io(serve.url("demo"), *[f"read -P {1 + place} {place * 513}k 513k" for place in range(32)])


def test_serve_killed_alone(make_serve: MakeServe) -> None:
    """kill -9 of `serve` only: nothing that it leaves keeps the next start from serving the same bytes."""
    serve = make_serve().start()
    qemu_io(serve.url("demo"), "write -P 5 0 4M")
    orphans = serve.processes()[1:]
    os.kill(serve.pid, signal.SIGKILL)
    serve.process.wait(10)
    try:
        serve.start()
        qemu_io(serve.url("demo"), "read -P 5 0 4M")
    finally:
        processes.kill_all(orphans)


@pytest.mark.serial
def test_initiator_killed_during_writes(make_serve: MakeServe) -> None:
    """An initiator dies with 32 writes of 1 MiB in flight; a new login works at once, and each block is old or new."""
    serve = make_serve().start()
    for round_number in range(3):
        with QemuShell(serve.url("demo")) as shell:
            for place in range(32):
                shell.ask(f"aio_write -q -P 1 {place}M 1M")
            shell.kill()
        value = 2 + round_number
        qemu_io(serve.url("demo"), f"write -P {value} 0 8M", f"read -P {value} 0 8M", timeout_s=5.0)
    blocks = set()
    with shm_client.Context(state_dir=serve.state_dir) as context, context.open("demo", os.O_RDONLY) as volume:
        buffer = context.allocate(MIB)
        for offset in range(8 * MIB, 64 * MIB, MIB):
            assert volume.read(buffer, MIB, offset) == MIB
            blocks |= {bytes(buffer.data[at : at + 512]) for at in range(0, MIB, 512)}
    assert blocks <= {bytes(512), b"\1" * 512}


@pytest.mark.serial
def test_stopped_initiator_starves_nobody(make_serve: MakeServe) -> None:
    """An initiator that takes nothing off its socket, with 32 reads of 1 MiB asked for, does not hold up another."""
    serve = make_serve().start()
    qemu_io(serve.url("demo"), "write -P 3 0 32M")
    with QemuShell(serve.url("demo")) as stalled:
        for place in range(32):
            stalled.ask(f"aio_read -q -P 3 {place}M 1M")
        os.kill(stalled.process.pid, signal.SIGSTOP)
        qemu_io(serve.url("demo"), "write -P 4 32M 32M", "read -P 4 32M 32M", timeout_s=20)
        os.kill(stalled.process.pid, signal.SIGCONT)
        stalled.ask("aio_flush")
        assert stalled.quit() == 0


def test_path_is_real(make_serve: MakeServe) -> None:
    """While the volume server is stopped no write completes; once it goes on, all do."""
    serve = make_serve().start()
    with QemuShell(serve.url("demo")) as shell:
        shell.ask("write -P 1 0 1M")
        server = serve.server_pid()
        os.kill(server, signal.SIGSTOP)
        try:
            shell.send("write -P 2 0 4k")
            assert not shell.is_answered(1.0), "a write completed though the volume server is stopped"
        finally:
            os.kill(server, signal.SIGCONT)
        processes.wait_until(lambda: shell.is_answered(0.1), 10.0, "the write completes")
        shell.ask("read -P 2 0 4k")


@pytest.mark.serial
@pytest.mark.timeout(150)
def test_forty_sessions_on_a_small_region(make_serve: MakeServe, short_dir: Path) -> None:
    """40 sessions × 32 writes of 1 MiB on a region of 64 MiB: all finish, and every byte is there."""
    serve = make_serve({"demo": "320M"}, vpool=vpool(short_dir / "pool", region_bytes=64 << 20)).start()
    running = []
    try:
        for session in range(40):
            commands: list[str] = []
            for number in range(32):  # all in flight at once; four of them write the same to each MiB
                commands += ["-c", f"aio_write -q -P {1 + session} {session * 8 + number % 8}M 1M"]
            commands += ["-c", "aio_flush", "-c", f"read -P {1 + session} {session * 8}M 8M"]
            running.append(initiators.spawn("qemu-io", "-f", "raw", "-t", "none", *commands, serve.url("demo")))
        deadline = time.monotonic() + 90
        for process in running:
            said, _ = process.communicate(timeout=max(1.0, deadline - time.monotonic()))
            assert process.returncode == 0, f"{said}\n{serve.log_tail()}"
            assert "failed" not in said, said
    finally:
        processes.kill_all(process.pid for process in running if process.poll() is None)
    qemu_io(serve.url("demo"), *[f"read -P {1 + session} {session * 8}M 8M" for session in range(40)])


def test_two_serves_at_once(make_serve: MakeServe) -> None:
    """Two instances on one host serve volumes of the same name, and neither sees the other's bytes."""
    one, two = make_serve().start(), make_serve().start()
    assert one.address != two.address
    qemu_io(one.url("demo"), "write -P 1 0 8M")
    qemu_io(two.url("demo"), "write -P 2 0 8M")
    qemu_io(one.url("demo"), "read -P 1 0 8M")
    qemu_io(two.url("demo"), "read -P 2 0 8M")
    assert one.stop() == 0
    qemu_io(two.url("demo"), "read -P 2 0 8M")
    assert two.stop() == 0


def test_second_serve_on_the_same_state_is_refused(make_serve: MakeServe) -> None:
    """A second instance on the same state directory ends, naming the first one's pid; the first serves on."""
    first = make_serve().start()
    second = Serve(first.state_dir, {"demo": "64M"})
    second.log_path = first.log_path.with_suffix(".second")
    try:
        process = second.spawn()
        assert process.wait(20) != 0
    finally:
        second.kill()
    pids = {str(pid) for pid in first.processes()}
    assert any(pid in second.log_tail() for pid in pids), second.log_tail()
    qemu_io(first.url("demo"), "write -P 1 0 1M", "read -P 1 0 1M")


def test_portal_that_is_taken(make_serve: MakeServe) -> None:
    """A portal that somebody holds: a sentence that names it, an exit code, and nothing left running."""
    first = make_serve().start()
    host, port = first.address
    second = make_serve(portal=f"{host}:{port}")
    process = second.spawn()
    assert process.wait(20) != 0
    assert str(port) in second.log_tail()
    assert "Traceback" not in second.log_tail()
    assert processes.tree(process.pid)[1:] == []


def test_key_off_is_refused(make_serve: MakeServe, short_dir: Path) -> None:
    """Shared memory switched off in vpool.json: serve ends with a sentence that names the key and the file."""
    serve = make_serve(vpool=vpool(short_dir / "pool", enabled=False))
    process = serve.spawn()
    assert process.wait(30) != 0
    said = serve.log_tail()
    assert "fs_enable_shm_interface" in said, said
    assert str(serve.state_dir / "vpool.json") in said, said
    assert "Traceback" not in said, said
    assert processes.tree(process.pid)[1:] == []


def test_stop_leaves_nothing(make_serve: MakeServe) -> None:
    """SIGTERM with a session logged in: exit code 0, no process left, and no segment that has a name."""
    serve = make_serve().start()
    with QemuShell(serve.url("demo")) as shell:
        shell.ask("write -P 1 0 1M")
        mapped = [line for pid in serve.processes() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]
        shared = [line for line in mapped if "/dev/shm/" in line and str(serve.state_dir) not in line]
        assert shared, "no process maps the segment"
        assert all(line.endswith("(deleted)") for line in shared), shared
        assert serve.stop() == 0


@pytest.mark.serial
@pytest.mark.timeout(150)
def test_a_server_that_keeps_dying(make_serve: MakeServe) -> None:
    """`serve` starts its volume server again, but not for ever: after five deaths in a minute its exit code says so."""
    serve = make_serve().start()
    deaths = 0
    deadline = time.monotonic() + 100
    while serve.process.poll() is None and time.monotonic() < deadline:
        victim = serve.kill_server()
        deaths += 1
        try:
            serve.wait_new_server(victim, 60.0)
        except ServeError:
            break  # it gave up
    assert deaths >= 5
    assert serve.process.wait(10) not in (0, -signal.SIGKILL)
    assert "Traceback" not in serve.log_tail()
