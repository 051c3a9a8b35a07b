"""`iscsi-ovs serve` as a user starts it: a process, its ready lines, its volume server, its end.

`Serve` is what the tests with real initiators, the Linux guest, the recorder of traces and the benchmarks share.
Nothing here imports the product: it is a command, as it is to a user.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from tests.interop import processes

IQN_PREFIX = "iqn.2016-01.com.openvstorage:"
READY = re.compile(r"^ready (iscsi://(?P<host>\[[^]]+\]|[^:/]+):(?P<port>\d+)/(?P<iqn>[^/]+)/0)\s*$")


class ServeError(AssertionError):
    """`serve` did not do what was awaited; the message carries the end of its log."""


class Serve:
    """One running `iscsi-ovs serve`.

    Use it as a context manager: what it started is gone afterwards, whatever happened. `prefix` stands before the
    command (``ip netns exec NAME``). `vpool` is written to vpool.json in the state directory before the start.
    """

    def __init__(
        self,
        state_dir: Path,
        volumes: Mapping[str, str],
        *,
        snapshots: Sequence[str] = (),
        portal: str = "127.0.0.1:0",
        advertise: str | None = None,
        config: str | None = None,
        vpool: Mapping[str, Any] | None = None,
        prefix: Sequence[str] = (),
        ready_timeout_s: float = 20.0,
    ) -> None:
        self.state_dir = state_dir
        self.volumes = dict(volumes)
        self.ready_timeout_s = ready_timeout_s
        self.urls: dict[str, str] = {}
        self.stdout: list[str] = []
        self.log_path = state_dir.parent / f"{state_dir.name}.log"
        state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        if vpool is not None:
            (state_dir / "vpool.json").write_text(json.dumps(vpool))
        self.command = [*prefix, *iscsi_ovs("serve", "--state-dir", str(state_dir))]
        if config is not None:  # its portals stand in it
            self.config_path = state_dir / "config.toml"
            self.config_path.write_text(config)
            self.command += ["--config", str(self.config_path), "--open"]
        else:
            self.command += ["--portal", portal]
        if config is None and not portal.startswith(("127.", "[::1]", "localhost")):
            self.command += ["--open"]
        if advertise is not None:
            self.command += ["--advertise", advertise]
        for name, size in self.volumes.items():
            self.command += ["--volume", f"{name}={size}"]
        for name in snapshots:
            self.command += ["--volume", name]
        self._awaited = {*self.volumes, *(name.replace("@", ":") for name in snapshots)}
        self._process: subprocess.Popen[str] | None = None
        self._ready = threading.Event()
        self._reader: threading.Thread | None = None

    # -- start

    def start(self) -> Serve:
        """Starts the command and waits for a ready line of every volume."""
        self.spawn()
        self.wait_ready()
        return self

    def spawn(self) -> subprocess.Popen[str]:
        """Starts the command and waits for nothing."""
        self.urls.clear()
        self._ready = threading.Event()  # its own: the end of a killed one's output may come late
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
                start_new_session=True,
            )
        self._reader = threading.Thread(target=self._read_stdout, args=(self._process, self._ready), daemon=True)
        self._reader.start()
        return self._process

    def _read_stdout(self, process: subprocess.Popen[str], ready: threading.Event) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.stdout.append(line.rstrip("\n"))
            if (match := READY.match(line)) is not None:
                self.urls[match["iqn"].removeprefix(IQN_PREFIX)] = match[1]
                if self._awaited <= set(self.urls):
                    ready.set()
        process.stdout.close()
        ready.set()  # the end of the output ends the wait, too

    def wait_ready(self) -> None:
        self._ready.wait(self.ready_timeout_s)
        missing = self._awaited - set(self.urls)
        if missing:
            code = self.process.poll()
            self.kill()
            raise ServeError(f"no ready line for {sorted(missing)} (exit code {code}): {self.log_tail()}")

    # -- while it runs

    @property
    def process(self) -> subprocess.Popen[str]:
        assert self._process is not None, "not started"
        return self._process

    @property
    def pid(self) -> int:
        return self.process.pid

    def url(self, volume: str) -> str:
        return self.urls[volume]

    @property
    def address(self) -> tuple[str, int]:
        """Host and port of the ready lines."""
        match = READY.match(f"ready {next(iter(self.urls.values()))}")
        assert match is not None
        return match["host"].strip("[]"), int(match["port"])

    @property
    def portal_url(self) -> str:
        host, port = self.address
        return f"iscsi://{host}:{port}"

    def processes(self) -> list[int]:
        """serve and everything it started."""
        return processes.tree(self.pid)

    def server_pid(self) -> int:
        """The volume server that serves at this moment: the youngest process below `serve` that is one."""
        found = self._server_pid()
        if found is None:
            raise ServeError(f"no volume server below serve: {[processes.command_line(p) for p in self.processes()]}")
        return found

    def _server_pid(self) -> int | None:
        found = [pid for pid in self.processes()[1:] if is_volume_server(pid) and processes.is_alive(pid)]
        return found[-1] if found else None

    def kill_server(self) -> int:
        """kill -9 of the volume server; returns its pid once it is gone."""
        pid = self.server_pid()
        processes.kill_all([pid])
        return pid

    def kill_target(self) -> None:
        """kill -9 of what speaks iSCSI below `serve`, which starts another one."""
        children = [pid for pid in self.processes()[1:] if processes.is_alive(pid)]
        targets = [pid for pid in children if not is_volume_server(pid)]
        assert targets, "no target below serve"
        processes.kill_all(targets)

    def wait_new_server(self, old_pid: int, timeout_s: float = 20.0) -> int:
        """Waits until `serve` has started another volume server than `old_pid`; an error if `serve` ends instead."""

        def another() -> bool:
            if self.process.poll() is not None:
                raise ServeError(f"serve ended with code {self.process.returncode}: {self.log_tail()}")
            found = self._server_pid()
            return found is not None and found != old_pid

        processes.wait_until(another, timeout_s, f"another volume server than {old_pid}")
        return self.server_pid()

    def volume(self, *arguments: str, timeout_s: float = 20.0) -> subprocess.CompletedProcess[str]:
        """Runs `iscsi-ovs volume …` against this instance."""
        command = iscsi_ovs("volume", arguments[0], "--state-dir", str(self.state_dir), *arguments[1:])
        return subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False
        )

    def log_tail(self, lines: int = 30) -> str:
        log = self.log_path.read_text(errors="replace") if self.log_path.exists() else ""
        return "\n".join([*self.stdout[-5:], *log.splitlines()[-lines:]])

    # -- end

    def stop(self, timeout_s: float = 15.0) -> int:
        """SIGTERM, as a supervisor does; returns the exit code. Nothing that it started may outlive it."""
        members = self.processes()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            tail = self.log_tail()
            self.kill()
            raise ServeError(f"serve did not end within {timeout_s:g} s of SIGTERM: {tail}") from None
        left = [pid for pid in members if not processes.wait_gone(pid, 2.0)]
        self.kill(left)
        if left:
            raise ServeError(f"serve ended and left processes behind: {left}")
        return code

    def kill(self, also: Sequence[int] = ()) -> None:
        """kill -9 of serve and all it started: for faults and for the end of a test."""
        if self._process is None:
            return
        members = self.processes() if self._process.poll() is None else []
        processes.kill_all([*members, *also])
        self._process.wait(10)
        if self._reader is not None:
            self._reader.join(5)

    def __enter__(self) -> Serve:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.kill()


def iscsi_ovs(*arguments: str) -> list[str]:
    """The command line of `iscsi-ovs …` in the environment that runs the tests."""
    return [sys.executable, "-m", "iscsi_ovs", *arguments]


def is_volume_server(pid: int) -> bool:
    """Whether a process is a volume server, by its command line."""
    return any("shm_server" in part or "shm-server" in part for part in processes.command_line(pid)[:4])


def vpool(pool: Path, *, enabled: bool = True, region_bytes: int | None = None) -> dict[str, Any]:
    """The content of a vpool.json over a local directory."""
    pool.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {
        "filesystem": {"fs_enable_shm_interface": enabled},
        "backend_connection_manager": {"backend_type": "LOCAL", "local_connection_path": str(pool)},
    }
    if region_bytes is not None:
        content["shm_interface"] = {"shm_region_size": region_bytes}
    return content


def environment() -> dict[str, str]:
    """The environment for a foreign program: no locale of the user's in what it prints."""
    return {**os.environ, "LC_ALL": "C"}
