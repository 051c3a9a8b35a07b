"""kill -9 of the volume server, the target, or both, at any moment of a load over TCP: nothing acknowledged is lost.

qemu-io writes (libiscsi connects again by itself), every write is entered in a log when it has been acknowledged, and
meanwhile snapshots are made and removed. Then the disk has every acknowledged write, before and after another start of
everything, and every snapshot that replied has what was acknowledged before it was asked for, and nothing that was
written after its reply. KILL_SEED is printed, and repeats the order of things, if not their moments.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable

import pytest

from iscsi_ovs import shm_client
from tests.interop.initiators import QemuShell, qemu_io
from tests.interop.serving import Serve

pytestmark = [pytest.mark.interop]

SEED = int(os.environ.get("KILL_SEED", str(random.randrange(1 << 32))))
CELLS = 192
CELL_BYTES = 64 * 1024
WHO = ("server", "target", "both")
SOAK_ROUNDS = 100
ROUNDS_OF_A_SERVE = 4  # it gives up after five deaths in a minute


class Log:
    """What was sent and acknowledged, in its order."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, int]] = []  # cell, value
        self.acknowledged = 0

    def contents(self, count: int) -> list[int]:
        """Of each cell, after so many writes."""
        values = [0] * CELLS
        for cell, value in self.sent[:count]:
            values[cell] = value
        return values

    def may_have(self, first: int, last: int) -> list[set[int]]:
        """What each cell may have at a moment when ``first`` were acknowledged, and no more than ``last`` were sent."""
        values = [{value} for value in self.contents(first)]
        for cell, value in self.sent[first:last]:
            values[cell].add(value)
        return values


class Trouble(threading.Thread):
    """Snapshots come and go, and somebody is killed in the midst of that."""

    def __init__(self, serve: Serve, log: Log, who: str, choose: random.Random) -> None:
        super().__init__()
        self._serve = serve
        self._log = log
        self._who = who
        self._delay_s = choose.uniform(0.05, 0.5)
        self._choose = choose
        self.snapshots: dict[str, list[set[int]]] = {}
        self.is_over = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            killer = threading.Timer(self._delay_s, self._kill)
            killer.start()
            self._make_snapshots()
            killer.join()
        except BaseException as error:  # told by the test
            self.failure = error
        finally:
            self.is_over.set()

    def _make_snapshots(self) -> None:
        until = time.monotonic() + self._delay_s + 0.3
        number = 0
        while time.monotonic() < until:
            number += 1
            name = f"s{number}"
            try:
                with shm_client.Context(state_dir=self._serve.state_dir) as context:
                    first = self._log.acknowledged
                    context.create_snapshot("demo", name)
                    self.snapshots[name] = self._log.may_have(first, len(self._log.sent))
                    if len(self.snapshots) > 2:
                        gone = self._choose.choice(sorted(self.snapshots))
                        del self.snapshots[gone]
                        context.remove_snapshot("demo", gone)
            except (OSError, EOFError):
                time.sleep(0.02)  # it is dead: there is nothing to wait for but that it comes back

    def _kill(self) -> None:
        if self._who != "target":
            self._serve.kill_server()
        if self._who != "server":
            self._serve.kill_target()


def write(shell: QemuShell, log: Log, choose: random.Random) -> None:
    """A few cells at once, and then they are acknowledged."""
    for cell in choose.sample(range(CELLS), choose.randint(1, 4)):
        value = choose.randint(1, 255)
        log.sent.append((cell, value))
        shell.ask(f"aio_write -q -P {value} {cell * CELL_BYTES} {CELL_BYTES}", timeout_s=60)
    shell.ask("aio_flush", timeout_s=60)
    log.acknowledged = len(log.sent)


def reads(log: Log) -> list[str]:
    """Commands for qemu-io that find every acknowledged write."""
    values = log.contents(len(log.sent))
    return [f"read -q -P {value} {cell * CELL_BYTES} {CELL_BYTES}" for cell, value in enumerate(values)]


def check_snapshots(serve: Serve, snapshots: dict[str, list[set[int]]]) -> None:
    with shm_client.Context(state_dir=serve.state_dir) as context:
        for name, values in snapshots.items():
            with context.open(f"demo@{name}", os.O_RDONLY) as opened:
                buffer = context.allocate(CELL_BYTES)
                for cell, may_have in enumerate(values):
                    assert opened.read(buffer, CELL_BYTES, cell * CELL_BYTES) == CELL_BYTES
                    found = bytes(buffer.data[:CELL_BYTES])
                    assert found[0] in may_have, f"{name}, cell {cell}"
                    assert found == found[:1] * CELL_BYTES, f"{name}, cell {cell} is torn"


def one_round(serve: Serve, log: Log, who: str, choose: random.Random) -> None:
    trouble = Trouble(serve, log, who, choose)
    with QemuShell(serve.url("demo")) as shell:
        trouble.start()
        while not trouble.is_over.is_set():
            write(shell, log, choose)
        for _ in range(3):
            write(shell, log, choose)
        trouble.join()
        assert trouble.failure is None
        for line in reads(log):
            shell.ask(line, timeout_s=60)
        assert shell.quit() == 0
    check_snapshots(serve, trouble.snapshots)
    with shm_client.Context(state_dir=serve.state_dir) as context:
        for found in context.list_snapshots("demo"):  # one whose reply was lost may be there as well
            context.remove_snapshot("demo", found.name)


def rounds(make_serve: Callable[..., Serve], whom: list[str], seed: int) -> None:
    print(f"KILL_SEED={seed}")
    choose = random.Random(seed)
    for first in range(0, len(whom), ROUNDS_OF_A_SERVE):
        serve = make_serve({"demo": str(CELLS * CELL_BYTES)}).start()
        log = Log()
        for who in whom[first : first + ROUNDS_OF_A_SERVE]:
            one_round(serve, log, who, choose)
        serve.kill()
        serve.start()
        qemu_io(serve.url("demo"), *reads(log))
        assert serve.stop() == 0


@pytest.mark.serial
def test_acknowledged_writes_survive_any_kill(make_serve: Callable[..., Serve]) -> None:
    """Five rounds."""
    choose = random.Random(SEED)
    rounds(make_serve, [*choose.sample(WHO, 3), *choose.choices(WHO, k=2)], SEED)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_acknowledged_writes_survive_a_hundred_kills(make_serve: Callable[..., Serve]) -> None:
    rounds(make_serve, random.Random(SEED).choices(WHO, k=SOAK_ROUNDS), SEED)
