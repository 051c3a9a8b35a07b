"""A target whose disks are behind CHAP: `iscsi-ovs target --config` on a volume server of its own.

One volume stands behind a target for each algorithm, which takes that algorithm only, and behind one that takes all;
discovery is behind CHAP, too.
"""

from __future__ import annotations

import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from iscsi_ovs.shm_client import Context
from tests.interop.serving import IQN_PREFIX
from tests.storage.server_process import ServerProcess

ROOT = Path(__file__).parents[2]
USER, SECRET = "alice", "the-secret-of-alice"
OUR_NAME, OUR_SECRET = "disks", "the-secret-of-disks"
WRONG_SECRET = "a-guess-of-mallory"
ALGORITHMS = ("SHA3-256", "SHA-256", "SHA-1", "MD5")
READY = re.compile(r"^ready iscsi://(\S+)/(iqn\.\S+)/0$", re.MULTILINE)
LIMIT_S = 20.0


def target_of(algorithm: str) -> str:
    """The IQN of the target that takes this algorithm only."""
    return f"{IQN_PREFIX}{algorithm.lower()}"


ANY = f"{IQN_PREFIX}any"


def configuration(portal: str) -> str:
    account = f'chap = [{{ user = "{USER}", secret = "{SECRET}" }}]'
    mutual = f'mutual = {{ user = "{OUR_NAME}", secret = "{OUR_SECRET}" }}'
    lines = [f'[portal-group.default]\nlisten = ["{portal}"]\ndiscovery-auth-group = "any"', "[lun.disk]"]
    for name in ("any", *(algorithm.lower() for algorithm in ALGORITHMS)):
        lines.append(f"[auth-group.{name}]\n{account}\n{mutual}")
        if name != "any":
            lines.append(f'algorithms = ["{name.upper()}"]')
        lines.append(f'[target."{name}"]\nauth-group = "{name}"\nlun.0 = "disk"')
    return "\n".join(lines) + "\n"


class Guarded:
    """The running target. `prefix` stands before its command (``ip netns exec NAME``)."""

    def __init__(self, directory: Path, portal: str = "127.0.0.1:0", prefix: Sequence[str] = ()) -> None:
        self._server = ServerProcess(directory)
        self._config = directory / "config.toml"
        self._config.touch(mode=0o600)
        self._config.write_text(configuration(portal))
        self._log_path = directory / "target.log"
        self._command = [
            *prefix,
            *(sys.executable, "-m", "iscsi_ovs", "target"),
            *("--socket", str(self._server.socket_path), "--config", str(self._config)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self.portal = ""

    def url(self, iqn: str, *, secret: str = SECRET, options: str = "") -> str:
        """As libiscsi writes it."""
        return f"iscsi://{USER}%{secret}@{self.portal}/{iqn}/0{options}"

    @property
    def log(self) -> str:
        return self._log_path.read_text()

    def await_log(self, words: str) -> str:
        """The line with these words, once it is there."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            found = [line for line in self.log.splitlines() if words in line]
            if found:
                return found[-1]
            assert time.monotonic() < deadline, f"no line with {words!r}:\n{self.log}"
            time.sleep(0.02)

    def __enter__(self) -> Guarded:
        self._server.start()
        try:
            with Context(self._server.socket_path, words="a test") as context:
                context.create_volume("disk", 16 << 20)
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def _start(self) -> None:
        with self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log
            )
        assert self._process.stdout is not None
        said = ""
        while len(READY.findall(said)) < 1 + len(ALGORITHMS):
            assert select.select([self._process.stdout], [], [], LIMIT_S)[0], self.log
            chunk = os.read(self._process.stdout.fileno(), 4096)
            assert chunk, self.log
            said += chunk.decode()
        self.portal = READY.findall(said)[0][0]

    def _stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(LIMIT_S)
            finally:
                self._process.kill()
                assert self._process.stdout is not None
                self._process.stdout.close()
        self._server.stop()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop()
        if kind is None:
            assert "Traceback" not in self.log
            for secret in (SECRET, OUR_SECRET, WRONG_SECRET):
                assert secret not in self.log
