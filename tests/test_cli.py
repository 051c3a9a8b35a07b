"""`iscsi-ovs` as operators and their scripts see it: words, exit codes, JSON, what `serve` prints and when it ends."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest

from iscsi_ovs.cli import volume as listing
from iscsi_ovs.testing.socket_initiator import LoginRefusedError, SocketInitiator
from shm_server.abi.control import VolumeInfo
from tests import tools
from tests.interop import processes
from tests.interop.serving import IQN_PREFIX, Serve, iscsi_ovs

ROOT = Path(__file__).parents[1]
DONE, FAILED, USAGE, NOT_FOUND, BUSY, UNREACHABLE = range(6)
MIB = 1 << 20


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    """``iscsi-ovs …``; whatever it does, it shows nobody a traceback."""
    ran = subprocess.run(
        iscsi_ovs(*map(str, arguments)),
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, cwd=ROOT, check=False, **options,
    )  # fmt: skip
    assert "Traceback" not in ran.stderr, ran.stderr
    return ran


@pytest.fixture
def make_serve(short_dir: Path) -> Iterator[Callable[..., Serve]]:
    made: list[Serve] = []

    def make(volumes: dict[str, str], name: str = "s", **options: Any) -> Serve:
        made.append(Serve(short_dir / name, volumes, **options))
        return made[-1]

    yield make
    for running in made:
        running.kill()


@pytest.fixture
def volume(serve: Serve) -> Callable[..., subprocess.CompletedProcess[str]]:
    """``iscsi-ovs volume …`` on the shared instance."""

    def call(command: str, *arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
        return run("volume", command, "--state-dir", serve.state_dir, *arguments, **options)

    return call


Volume = Callable[..., subprocess.CompletedProcess[str]]
_numbers = itertools.count(1)


@pytest.fixture
def name() -> str:
    """Of a volume that nobody has."""
    return f"v{next(_numbers)}"


def session(serve: Serve, name: str) -> SocketInitiator:
    initiator = SocketInitiator(*serve.address)
    try:
        initiator.login(IQN_PREFIX + name)
    except LoginRefusedError:
        initiator.close()
        raise
    return initiator


# Usage ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ([], ["serve", "target", "reload", "volume"]),
        (["serve"], ["--state-dir", "--portal", "--advertise", "--volume", "127.0.0.1:3260", "--config", "--open"]),
        (["target"], ["--socket", "--iqn-prefix", "--instance", "--config", "--open"]),
        (["volume"], ["create", "list", "show", "resize", "export", "unexport", "remove"]),
        (["volume", "create"], ["NAME", "SIZE"]),
        (["volume", "list"], ["--output", "json"]),
    ],
    ids=" ".join,
)
def test_help(command: list[str], words: list[str]) -> None:
    """--help and -h say what there is, and exit with 0."""
    for option in ("--help", "-h"):
        said = run(*command, option)
        assert said.returncode == DONE
        assert [word for word in words if word not in said.stdout] == []


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["frobnicate"], "No such command 'frobnicate'"),
        (["serve", "--prtal", "x"], "--prtal"),
        (["serve", "extra"], "unexpected extra argument"),
        (["serve", "--portal", "host:port"], "'port' is not a TCP port"),
        (["serve", "--portal", "no.such.host:0", "--open", "--state-dir", "{dir}"], "portal no.such.host:0: "),
        (["serve", "--portal", "0.0.0.0:3260"], "portal 0.0.0.0:3260 is beyond loopback: whoever reaches it"),
        (["target", "--portal", "[::]:3260"], "portal [::]:3260 is beyond loopback"),
        (["serve", "--config", "{dir}/none.toml"], "none.toml: No such file"),
        (["serve", "--config", "x", "--portal", "127.0.0.1"], "with --config portals and what is advertised stand in"),
        (["target", "--config", "x", "--advertise", "a:1"], "with --config portals and what is advertised stand in"),
        (["target", "--config", "x", "--instance", "a"], "with --config names stand in the file"),
        (["serve", "--advertise", ":3260"], "has no host"),
        (["serve", "--advertise", "host:0"], "an initiator can't connect to port 0"),
        (["serve", "--volume", "demo"], "write NAME=SIZE, for instance demo=10G"),
        (["serve", "--volume", "demo=big"], "size 'big'"),
        (["serve", "--volume", "Demo=1G"], "'Demo' is no name of a volume"),
        (["serve", "--volume", "a=1G", "--volume", "a=2G"], "--volume a stands there twice"),
        (["serve", "--state-dir", "{dir}/" + "x" * 100], "choose a shorter --state-dir"),
        (["volume", "create", "demo"], "Missing argument 'SIZE'"),
        (["volume", "create", "demo", "1e3"], "size '1e3'"),
        (["volume", "create", "demo", "0"], "at least one byte"),
        (["volume", "resize", "demo", "9" * 40], "size '"),
        (["volume", "list", "-o", "yaml"], "'yaml' is not one of 'table', 'json'"),
        (["volume", "show"], "Missing argument 'NAME'"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else "",
)
def test_usage(short_dir: Path, arguments: list[str], words: str) -> None:
    """What can't be understood: exit code 2, a sentence on standard error, nothing on standard output."""
    said = run(*(argument.replace("{dir}", str(short_dir)) for argument in arguments))
    assert (said.returncode, said.stdout) == (USAGE, "")
    assert words in said.stderr


def test_state_directory_that_can_not_be(short_dir: Path) -> None:
    """A file is in its place: exit code 2, and what to do."""
    (short_dir / "file").write_text("")
    said = run("serve", "--state-dir", short_dir / "file" / "below", "--portal", "127.0.0.1:0")
    assert said.returncode == USAGE
    assert "choose another place with --state-dir" in said.stderr


# volume -----------------------------------------------------------------------------------------------------------


def test_exit_codes(volume: Volume, name: str) -> None:
    """0 done, 1 failed, 2 what can't be meant, 3 not found, 4 exists; each failure has its sentence."""
    assert volume("create", name, "1M").returncode == DONE
    for arguments, code, words in (
        (("create", name, "1M"), BUSY, f"{name} exists"),
        (("create", "No_Such_Name", "1M"), USAGE, "[a-z0-9]"),
        (("create", "huge", "100T"), USAGE, "max_volume_size"),
        (("rename", name, "A"), USAGE, "[a-z0-9]"),
        (("resize", name, "512K"), FAILED, "can't shrink"),
        (("resize", "nobody", "1M"), NOT_FOUND, "nobody"),
        (("show", "nobody"), NOT_FOUND, "nobody"),
        (("remove", "nobody"), NOT_FOUND, "nobody"),
        (("remove", "--force", "nobody"), NOT_FOUND, "nobody"),
    ):
        said = volume(*arguments)
        assert (said.returncode, said.stdout) == (code, ""), (arguments, said)
        assert said.stderr.startswith("iscsi-ovs: "), said.stderr
        assert words in said.stderr, said.stderr
    assert volume("resize", name, "2M").returncode == DONE
    assert volume("remove", name).returncode == DONE
    assert volume("remove", name).returncode == NOT_FOUND


def test_a_held_volume(serve: Serve, volume: Volume, name: str) -> None:
    """Removing what somebody is logged in to: exit code 4, naming who; --force logs out and removes."""
    volume("create", name, "1M")
    with session(serve, name) as initiator:
        said = volume("remove", name)
        assert said.returncode == BUSY
        assert "iscsi target pid" in said.stderr
        assert initiator.nop_out().is_complete
        assert volume("remove", "--force", name).returncode == DONE
        with pytest.raises((EOFError, ConnectionError)):
            initiator.nop_out()


@pytest.mark.parametrize(
    "command", [("list",), ("show", "x"), ("create", "x", "1M"), ("resize", "x", "1M"), ("remove", "x")]
)
def test_unreachable(short_dir: Path, command: tuple[str, ...]) -> None:
    """No server there: exit code 5, the socket's path, and how to start one."""
    said = run("volume", *command, "--state-dir", short_dir)
    path = short_dir / "run" / "shm.sock"
    words = f"iscsi-ovs: no volume server: there is no socket {path}; start one with: iscsi-ovs serve\n"
    assert (said.returncode, said.stdout, said.stderr) == (UNREACHABLE, "", words)


def test_a_socket_path_that_is_too_long(short_dir: Path) -> None:
    """Exit code 5 and a sentence, not a word about sockaddr_un."""
    said = run("volume", "list", "--state-dir", short_dir / ("x" * 120))
    assert said.returncode == UNREACHABLE
    assert "a Unix socket's path has at most 107 bytes" in said.stderr


def test_a_server_that_does_not_answer(short_dir: Path) -> None:
    """Exit code 5 when its time is over, for every command, and not a hang."""
    (short_dir / "run").mkdir()
    script = (
        "import sys; from iscsi_ovs.cli import main, shared; "
        "shared.ANSWER_LIMIT_S = 0.1; sys.argv[0] = 'iscsi-ovs'; main()"
    )
    for name in ("shm.sock", "target.sock"):
        with socket.socket(socket.AF_UNIX) as deaf:
            deaf.bind(str(short_dir / "run" / name))
            deaf.listen()
            command = ["reload"] if name == "target.sock" else ["volume", "list"]
            said = subprocess.run(
                [sys.executable, "-c", script, *command, "--state-dir", str(short_dir)],
                capture_output=True, text=True, timeout=30, check=False,
            )  # fmt: skip
        assert (said.returncode, said.stdout) == (UNREACHABLE, "")
        assert "not answer" in said.stderr
        assert str(short_dir) in said.stderr


def test_list_as_json(volume: Volume, name: str) -> None:
    """A list of objects with these keys; sizes in bytes, rounded up to 4 KiB; nobody holds it."""
    volume("create", name, "1234567")
    rows = json.loads(volume("list", "-o", "json").stdout)
    row = next(row for row in rows if row["name"] == name)
    assert {key: type(value) for key, value in row.items()} == {
        "name": str, "size_bytes": int, "allocated_bytes": int, "uuid": str, "held": type(None), "failed": bool,
        "is_template": bool, "footprint_bytes": int, "promotion_percent": type(None), "sanitize_percent": type(None),
        "under_way": list,
    }  # fmt: skip
    assert row["size_bytes"] == 1236992
    assert len(bytes.fromhex(row["uuid"])) == 16


def test_show_as_json(serve: Serve, volume: Volume, name: str) -> None:
    """One object; while a session is there, who holds it and the bytes that its handle has moved."""
    volume("create", name, "1M")
    with session(serve, name) as initiator:
        while initiator.command(bytes(6)).status:
            pass
        initiator.command(bytes.fromhex("2a000000000000000800"), write=bytes(4096))
        initiator.command(bytes.fromhex("28000000000000001000"), read=8192)
        row = json.loads(volume("show", name, "-o", "json").stdout)
    assert row["held"].startswith("iscsi target pid")
    (handle,) = row["handles"]
    assert (handle["volume"], handle["access"]) == (name, "rw")
    assert (handle["written_bytes"], handle["read_bytes"]) == (4096, 8192)


def test_tables(serve: Serve, volume: Volume, name: str) -> None:
    """Without -o: columns that stand below each other, and lines of key and value."""
    volume("create", name, "1536K")
    with session(serve, name):
        table = volume("list").stdout.splitlines()
        shown = volume("show", name).stdout
    assert table[0].split() == ["NAME", "SIZE", "STORED", "FOOTPRINT", "UUID", "STATE", "HELD", "BY"]
    row = next(line for line in table if line.startswith(f"{name} "))
    assert row.split()[:3] == [name, "1.5M", "0"]
    assert row[table[0].index("HELD") :].startswith("iscsi target pid")
    assert f"name: {name}\nsize_bytes: 1572864\n" in shown
    assert "handle " in shown


def test_what_is_under_way(capsys: pytest.CaptureFixture[str]) -> None:
    """The list says of each volume what it is, and how far has come what is being done to it."""
    plain = VolumeInfo("a", "0" * 32, 1 << 30, 0, 1, True)
    states = {}
    for changes in (
        {},
        {"promotion": 32768},
        {"failed": True, "sanitize": 655},
        {"is_template": True},
        {"under_way": ("merging",)},
    ):
        listing._print([listing._row(msgspec.structs.replace(plain, **changes))], "table")
        head, row = capsys.readouterr().out.splitlines()
        states[row[head.index("STATE") : head.index("HELD BY")].strip()] = changes
    assert list(states) == ["-", "promoting 50%", "failed, sanitizing 1%", "template", "merging"]


def test_a_check_of_what_has_no_checksums(volume: Volume, name: str) -> None:
    """It does not call that good: nothing was looked at."""
    volume("create", name, "1M")
    said = volume("check", name)
    assert (said.returncode, "no snapshots and is no clone" in said.stdout) == (DONE, True)


def test_nobody_reads_what_it_prints(serve: Serve) -> None:
    """`iscsi-ovs volume list | head -0` is no failure of the server's: no words, and not exit code 5."""
    reader, writer = os.pipe()
    os.close(reader)
    command = iscsi_ovs("volume", "list", "--state-dir", str(serve.state_dir))
    said = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=30, cwd=ROOT, check=False)
    os.close(writer)
    assert (said.returncode, said.stderr) == (FAILED, "")


def test_volumes_come_and_go_while_it_runs(serve: Serve, volume: Volume, name: str) -> None:
    """Created: a ready line, and logins. Grown: larger. Removed: not found any more, by login and by SendTargets."""
    volume("create", name, "1M")
    processes.wait_until(lambda: name in serve.urls, 5.0, "a ready line for the new volume")
    with session(serve, name) as initiator:
        while initiator.command(bytes(6)).status:
            pass
        volume("resize", name, "2M")
        attention = initiator.command(bytes(6))
        assert (attention.sense_key, attention.additional_sense) == (6, (0x2A, 0x09))
        capacity = initiator.command(bytes.fromhex("25000000000000000000"), read=8).data
        assert int.from_bytes(capacity[:4], "big") == 2 * MIB // 512 - 1
        initiator.logout()
    assert volume("remove", name).returncode == DONE

    def is_withdrawn() -> bool:
        with SocketInitiator(*serve.address) as finder:
            finder.login(None)
            return IQN_PREFIX + name not in finder.send_targets()

    processes.wait_until(is_withdrawn, 5.0, "the volume is withdrawn")
    with pytest.raises(LoginRefusedError) as refused:
        session(serve, name)
    assert refused.value.status == (2, 3)


# serve ------------------------------------------------------------------------------------------------------------


def test_first_and_second_start(make_serve: Callable[..., Serve]) -> None:
    """An empty pool gets the default volume and a vpool.json, both announced; the second start changes neither."""
    first = make_serve({})
    first.volumes = {"demo": ""}  # awaited, though nobody asked for it
    first.start()
    vpool = first.state_dir / "vpool.json"
    assert f"wrote {vpool}" in first.log_tail()
    assert "created volume demo, 10G, thin" in first.log_tail()
    for path, mode in ((first.state_dir, 0o700), (first.state_dir / "run", 0o700), (vpool, 0o600)):
        assert stat.S_IMODE(path.stat().st_mode) == mode, path
    assert stat.S_IMODE((first.state_dir / "run" / "shm.sock").stat().st_mode) == 0o600
    assert first.volume("create", "other", "1M").returncode == 0
    assert first.volume("remove", "demo").returncode == 0
    assert first.stop() == 0
    content = vpool.read_text() + "\n\n"
    vpool.write_text(content)
    first.log_path.write_text("")
    first.volumes = {"other": ""}
    first.start()
    assert set(first.urls) == {"other"}, "the default volume is for an empty pool only"
    assert "wrote" not in first.log_tail()
    assert vpool.read_text() == content
    assert first.stop() == 0


def test_two_volumes_and_what_is_printed(make_serve: Callable[..., Serve]) -> None:
    """A ready line for each volume, each good for a login at once; behind them the iscsiadm lines; nothing else."""
    serve = make_serve({"one": "1M", "two": "2M"}).start()
    for name in ("one", "two"):
        session(serve, name).close()
    processes.wait_until(lambda: len(serve.stdout) == 5, 5.0, "everything is printed")
    host, port = serve.address
    assert serve.stdout == [
        f"ready iscsi://{host}:{port}/{IQN_PREFIX}one/0",
        f"ready iscsi://{host}:{port}/{IQN_PREFIX}two/0",
        "to log in from Linux:",
        f"  iscsiadm -m discovery -t sendtargets -p {host}:{port}",
        f"  iscsiadm -m node -p {host}:{port} --login",
    ]


def test_ipv6_and_an_advertised_address(make_serve: Callable[..., Serve]) -> None:
    """It listens on [::1], and tells initiators and the operator the address that --advertise says."""
    serve = make_serve({"demo": "1M"}, portal="[::1]:0", advertise="storage.example:3999").start()
    assert serve.url("demo") == f"iscsi://storage.example:3999/{IQN_PREFIX}demo/0"
    processes.wait_until(lambda: len(serve.stdout) == 4, 5.0, "everything is printed")
    assert serve.stdout[2].endswith(" -p storage.example:3999")
    target = next(pid for pid in serve.processes() if "target" in processes.command_line(pid)[:4])
    line = processes.command_line(target)
    host, _, port = line[line.index("--portal") + 1].rpartition(":")
    with SocketInitiator(host.strip("[]"), int(port)) as finder:
        finder.login(None)
        assert finder.send_targets() == {f"{IQN_PREFIX}demo": ["storage.example:3999,1"]}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends(make_serve: Callable[..., Serve], number: signal.Signals) -> None:
    """SIGTERM and SIGINT: exit code 0 within a few seconds, sessions or not, and nothing is left running."""
    serve = make_serve({"demo": "1M"}).start()
    members = serve.processes()
    with session(serve, "demo"):
        begun = time.monotonic()
        serve.process.send_signal(number)
        assert serve.process.wait(10) == 0
        assert time.monotonic() - begun < 5
    assert all(processes.wait_gone(pid, 1.0) for pid in members)
    assert "Traceback" not in serve.log_tail(200)
    assert not (serve.state_dir / "run" / "shm.sock").exists()


def test_a_taken_portal(short_dir: Path) -> None:
    """The sentence names the holder's program and pid, and the option; exit code 2."""
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        portal = f"127.0.0.1:{holder.getsockname()[1]}"
        said = run("serve", "--state-dir", short_dir, "--portal", portal)
    assert (said.returncode, said.stdout) == (USAGE, "")
    assert f"portal {portal} is taken by " in said.stderr
    assert f"(pid {os.getpid()})" in said.stderr
    assert "--portal HOST:PORT" in said.stderr


@pytest.mark.parametrize("end", ["a pipe that nobody reads", "closed from the start"])
def test_without_standard_output(short_dir: Path, end: str) -> None:
    """`iscsi-ovs serve | head -1` and `iscsi-ovs serve >&-` serve on, also when there is more to print later."""
    state = short_dir / "s"
    command = iscsi_ovs("serve", "--state-dir", str(state), "--portal", "127.0.0.1:0", "--volume", "demo=1M")
    reader, writer = os.pipe()
    if end == "closed from the start":
        command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
    with (short_dir / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=writer, stderr=log, stdin=subprocess.DEVNULL, cwd=ROOT)
    os.close(writer)
    try:
        if end != "closed from the start":
            os.read(reader, 4096)  # the ready line
        os.close(reader)
        log_path = short_dir / "log"
        processes.wait_until(lambda: b"volume server attached" in log_path.read_bytes(), 10.0, "it serves")
        assert run("volume", "create", "late", "1M", "--state-dir", state).returncode == DONE
        processes.wait_until(lambda: b"serving late" in log_path.read_bytes(), 10.0, "the new volume is served")
        assert run("volume", "remove", "late", "--state-dir", state).returncode == DONE
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0
    finally:
        processes.kill_all(processes.tree(process.pid) if process.poll() is None else [])
        process.wait(10)
    assert "died" not in log_path.read_text()
    assert "Traceback" not in log_path.read_text()


def _python_of_nobody(as_nobody: list[str]) -> tuple[list[str], str]:
    """A command's beginning and a Python, with which nobody can run us: ours, or the system's with our packages."""
    paths = os.pathsep.join(path for path in sys.path if path.endswith("site-packages"))
    again = "import subprocess, sys; from iscsi_ovs import cli; subprocess.check_call([sys.executable, '-c', ''])"
    for prefix, python in (
        (as_nobody, sys.executable),
        ([*as_nobody, "env", f"PYTHONPATH={paths}"], "/usr/bin/python3"),
    ):
        if subprocess.run([*prefix, python, "-c", again], capture_output=True, cwd=ROOT, check=False).returncode == 0:
            return prefix, python
    pytest.skip("neither our Python nor the system's can be run by nobody: put the environment where all may read it")


def test_unprivileged(make_serve: Callable[..., Serve], short_dir: Path) -> None:
    """A user without rights can run it: here nobody, with a state directory of its own."""
    if os.geteuid() != 0:
        pytest.skip("every other test here runs unprivileged already")
    setpriv = tools.require_tool("setpriv", "util-linux")
    as_nobody = [setpriv, "--reuid=65534", "--regid=65534", "--clear-groups"]
    prefix, python = _python_of_nobody(as_nobody)
    os.chmod(short_dir, 0o755)
    serve = make_serve({"demo": "1M"}, prefix=prefix)
    serve.command[serve.command.index(sys.executable)] = python
    os.chown(serve.state_dir, 65534, 65534)
    serve.start()
    assert {os.stat(f"/proc/{pid}").st_uid for pid in serve.processes()} == {65534}
    with session(serve, "demo") as initiator:
        while initiator.command(bytes(6)).status:
            pass
        assert initiator.command(bytes.fromhex("2a000000000000000800"), write=b"n" * 4096).status == 0
    assert (serve.state_dir / "pool").stat().st_uid == 65534
    assert serve.stop() == 0, serve.log_tail()


@pytest.mark.parametrize(("hard", "raised"), [(2048, 2048), (8192, 4352)])
def test_as_many_connections_as_are_promised(hard: int, raised: int) -> None:
    """A target asks for a descriptor for each, as far as it may have them, and says where it may not."""
    script = (
        f"import logging, resource; resource.setrlimit(resource.RLIMIT_NOFILE, (1024, {hard}));"
        "from iscsi_ovs import cli; logging.basicConfig(); cli.target._raise_descriptor_limit();"
        "print(*resource.getrlimit(resource.RLIMIT_NOFILE))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert done.stdout.split() == [str(raised), str(hard)]
    assert ("only 2048 descriptors" in done.stderr) is (hard == 2048)
