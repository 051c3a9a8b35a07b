"""Processes that are kept alive: in what order they start and end, how often they are started again, what is said."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from iscsi_ovs import supervisor
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.supervisor import Child, StartError, supervise
from tests.interop import processes

ROOT = Path(__file__).parents[1]
# A child that notes what happens to it. What it does at its n-th start stands in its n-th argument (the last repeats).
CHILD = """
import os, signal, sys, time
log, name, *rest = sys.argv[1:]
plans, ready_fd = rest[:-2], int(rest[-1])
def note(word):
    with open(log, "a") as file:
        file.write(f"{name} {word} {os.getpid()}\\n")
def end(number, frame):
    note("stopped")
    sys.exit(0)
signal.signal(signal.SIGTERM, end)
if "hears" in plans:
    signal.signal(signal.SIGHUP, lambda number, frame: note("hung-up"))
note("begun")
plan = plans[min(open(log).read().count(f"{name} begun"), len(plans)) - 1]
if plan.startswith("exit"):
    sys.exit(int(plan[4:]))
if plan == "kill":
    os.kill(os.getpid(), 9)
if plan == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if plan.startswith("await"):
    while open(log).read().count(f"{plan[5:-1]} begun") < int(plan[-1]):
        time.sleep(0.01)
if plan != "mute":
    note("ready")
    os.write(ready_fd, b"ready\\n")
if plan == "brief":
    sys.exit(1)
while True:
    signal.pause()
"""


class Stage:
    """Children that write what happens into one log, and a thread that acts while they are supervised."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.touch()
        self.between: list[int] = []

    def child(self, name: str, *plans: str) -> Child:
        arguments = [str(self.path), name, *(plans or ("run",))]
        return Child(name, [sys.executable, "-S", "-E", "-c", CHILD, *arguments])

    def log(self) -> list[str]:
        """Name and word of each line."""
        return [line.rpartition(" ")[0] for line in self.path.read_text().splitlines()]

    def pid(self, name: str) -> int:
        return [int(line.split()[2]) for line in self.path.read_text().splitlines() if line.startswith(f"{name} ")][-1]

    def until(self, line: str, count: int = 1) -> None:
        processes.wait_until(lambda: self.log().count(line) >= count, 10.0, f"{line}, {count} times: {self.log()}")

    def supervise(self, children: list[Child], act: Callable[[], None] | None = None) -> int:
        """supervise() until ``act``, on a thread, is through; SIGTERM ends it. Without ``act`` it ends by itself."""
        failures: list[BaseException] = []

        def run() -> None:
            assert act is not None
            try:
                act()
            except BaseException as error:  # handed to the test below
                failures.append(error)
            os.kill(os.getpid(), signal.SIGTERM)

        thread = threading.Thread(target=run) if act is not None else None
        if thread is not None:
            thread.start()
        code = supervise(children, self.between.append)
        if thread is not None:
            thread.join()
        if failures:
            raise failures[0]
        return code


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path / "log")
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD, signal.SIGHUP)
    handlers = [signal.getsignal(number) for number in numbers]
    descriptors = os.listdir("/proc/self/fd")
    # A SIGTERM that comes late must not end the tests.
    signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield made
    signal.signal(signal.SIGTERM, handlers[0])
    assert [signal.getsignal(number) for number in numbers] == handlers
    # Fewer is no leak: something of another test's may have been collected meanwhile.
    assert len(os.listdir("/proc/self/fd")) <= len(descriptors)


@pytest.fixture
def no_back_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(supervisor, "_BACK_OFF_S", (0.0,))


def test_order(stage: Stage) -> None:
    """One after the other when each is ready, with ``between`` after each; the last one is stopped first."""
    code = stage.supervise([stage.child("a"), stage.child("b")], lambda: stage.until("b ready"))
    assert code == 0
    assert stage.between == [0, 1]
    starts = ["a begun", "a ready", "b begun", "b ready"]
    assert stage.log() == [*starts, "b stopped", "a stopped"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals(stage: Stage, number: signal.Signals) -> None:
    """SIGTERM and SIGINT end it alike."""

    def act() -> None:
        stage.until("a ready")
        os.kill(os.getpid(), number)
        stage.until("a stopped")

    assert stage.supervise([stage.child("a")], act) == 0


def test_a_dead_child_is_started_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Whichever it is, and the others stay; its death and its return are in the log, with pids."""

    def act() -> None:
        stage.until("b ready")
        for count, name in enumerate(("a", "b"), 2):
            victim = stage.pid(name)
            os.kill(victim, signal.SIGKILL)
            stage.until(f"{name} ready", 2)
            processes.wait_until(lambda count=count: caplog.text.count("runs again") == count - 1, 5.0, "it is said")  # type: ignore[misc]
            assert f"{name} (pid {victim}) died: killed by SIGKILL" in caplog.text
            assert f"{name} runs again (pid {stage.pid(name)})" in caplog.text

    with caplog.at_level(logging.INFO, "iscsi_ovs.serve"):
        assert stage.supervise([stage.child("a"), stage.child("b")], act) == 0
    assert stage.between == [0, 1], "only at the first start"


def test_hang_up(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """SIGHUP goes to the children that take it, and to nobody else; what comes while one is dead is not lost."""
    hearing, deaf = stage.child("a", "hears"), stage.child("b")
    hearing.takes_hang_up = True

    def act() -> None:
        stage.until("b ready")
        os.kill(os.getpid(), signal.SIGHUP)
        stage.until("a hung-up")
        os.kill(stage.pid("a"), signal.SIGKILL)
        processes.wait_until(lambda: "died" in caplog.text, 5.0, "its death is noticed")
        os.kill(os.getpid(), signal.SIGHUP)
        stage.until("a hung-up", 2)
        stage.until("a ready", 2)

    assert stage.supervise([hearing, deaf], act) == 0
    assert stage.log().count("b begun") == 1


def test_back_off() -> None:
    """At once the first time, then later and later; deaths of more than a minute ago don't count."""
    child = Child("a", ["true"])
    delays, now = [], 1000.0
    for _ in range(supervisor.DEATHS_LIMIT - 1):
        assert child.died(now)
        assert child.start_at is not None
        delays.append(child.start_at - now)
        now += 10.0
    assert delays == sorted(set(delays))
    assert delays[0] == 0.0
    assert not child.died(now), "the fifth in a minute"
    now += supervisor.DEATHS_WINDOW_S + 1
    assert child.died(now)
    assert child.start_at == now


@pytest.mark.usefixtures("no_back_off")
def test_it_gives_up(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Five deaths of one child in a minute: exit code 6, the log says so, the other child is stopped."""
    assert stage.supervise([stage.child("a"), stage.child("b", "brief")]) == 6
    assert stage.log().count("b ready") == supervisor.DEATHS_LIMIT
    assert stage.log()[-1] == "a stopped"
    assert "b died 5 times in 60 s: giving up" in caplog.text


@pytest.mark.usefixtures("no_back_off")
def test_it_gives_up_on_one_that_never_gets_ready_again(stage: Stage, caplog: pytest.LogCaptureFixture) -> None:
    """Deaths before it is ready count like others, once it has run."""

    def act() -> None:
        stage.until("a ready")
        os.kill(stage.pid("a"), signal.SIGKILL)
        processes.wait_until(lambda: "giving up" in caplog.text, 10.0, "it gives up")

    assert stage.supervise([stage.child("a", "run", "exit4")], act) == 6
    assert stage.log() == ["a begun", "a ready", *["a begun"] * 4]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        ("exit2", r"b did not start \(exit code 2\); its reason stands above"),
        ("exit3", r"b did not start \(exit code 3\); its reason stands above"),
        ("kill", r"b did not start \(killed by SIGKILL\); its reason stands above"),
        ("mute", r"b was not ready within 0 s"),
    ],
)
def test_a_first_start_that_fails(stage: Stage, monkeypatch: pytest.MonkeyPatch, plan: str, words: str) -> None:
    """The first start of a child is not repeated: an error says what became of it, and the others are stopped. What the
    child could not obey is a ConfigurationError, as if we had found it."""
    if plan == "mute":
        monkeypatch.setattr(supervisor, "START_LIMIT_S", 0.3)
    with pytest.raises(ConfigurationError if plan == "exit2" else StartError, match=words):
        stage.supervise([stage.child("a"), stage.child("b", plan)])
    assert stage.between == [0]
    assert stage.log()[-1] == "a stopped"
    assert "b ready" not in stage.log()


def test_what_between_raises(stage: Stage) -> None:
    """It ends the whole, children stopped first."""
    with pytest.raises(ZeroDivisionError):
        supervise([stage.child("a")], lambda number: print(1 // number))
    assert stage.log() == ["a begun", "a ready", "a stopped"]


def test_stopped_while_one_is_not_ready(stage: Stage) -> None:
    """A stop signal is obeyed at once, whatever is being waited for."""
    begun = time.monotonic()
    assert stage.supervise([stage.child("a"), stage.child("b", "mute")], lambda: stage.until("b begun")) == 0
    assert time.monotonic() - begun < 5.0
    assert stage.between == [0]
    assert stage.log()[-2:] == ["b stopped", "a stopped"]


def test_one_that_waits_for_another_that_died(stage: Stage) -> None:
    """b can't get ready without a, and a dies meanwhile: a is started again all the same, then both are there."""

    def act() -> None:
        stage.until("b ready")
        os.kill(stage.pid("b"), signal.SIGKILL)
        stage.until("b begun", 2)  # it waits for the second a now
        os.kill(stage.pid("a"), signal.SIGKILL)
        stage.until("b ready", 2)

    assert stage.supervise([stage.child("a"), stage.child("b", "run", "awaita2")], act) == 0


def test_a_child_that_ignores_sigterm(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed when its time is over."""
    monkeypatch.setattr(supervisor, "STOP_LIMIT_S", 0.2)
    child = stage.child("a", "deaf")
    assert stage.supervise([child], lambda: stage.until("a ready")) == 0
    assert child.process is not None
    assert child.process.returncode == -signal.SIGKILL


SUPERVISOR = """
import sys
from pathlib import Path
from tests.test_supervisor import Stage
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.supervisor import supervise
stage = Stage(Path(sys.argv[1]))
supervise([stage.child("a"), stage.child("b", "deaf")], stage.between.append)
"""


def test_killed_supervisor(tmp_path: Path) -> None:
    """kill -9 of the supervisor: its children don't outlive it, for they hold the pool and the portal."""
    stage = Stage(tmp_path / "log")
    parent = subprocess.Popen([sys.executable, "-c", SUPERVISOR, str(stage.path)], cwd=ROOT)
    try:
        stage.until("b ready")
        children = [stage.pid("a"), stage.pid("b")]
    finally:
        parent.kill()
        parent.wait(10)
    assert all(processes.wait_gone(pid, 5.0) for pid in children)
    assert "a stopped" not in stage.log()


def test_modules_in_the_working_directory_are_not_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever can write where we are started does not run as we do. Where we came from there ourselves, so do they."""
    assert supervisor.python_module("shm_server")[1:] == ["-m", "shm_server"]
    (tmp_path / "msgspec.py").write_text("raise SystemExit('this is not msgspec')")
    monkeypatch.chdir(tmp_path)
    subprocess.run(supervisor.python_module("shm_server", "--help"), check=True, capture_output=True, timeout=60)
