"""The real volume server as a process of its own, for tests of its clients."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class ServerProcess:
    """``python -m shm_server`` on a pool under ``directory``; start() returns once it accepts clients."""

    def __init__(self, directory: Path, *, enabled: bool = True, shm_region_size: int = 64 << 20, **own: Any) -> None:
        """``own``: keys of the section shm_server (store, delay …)."""
        self.socket_path = directory / "shm.sock"
        self.log_path = directory / "server.log"
        self._config_path = directory / "vpool.json"
        self._process: subprocess.Popen[bytes] | None = None
        (directory / "pool").mkdir(exist_ok=True)
        config = {
            "filesystem": {"fs_enable_shm_interface": enabled},
            "shm_interface": {"shm_region_size": shm_region_size},
            "volume_manager": {"max_volume_size": "1TiB"},
            "backend_connection_manager": {"local_connection_path": str(directory / "pool")},
            "shm_server": own,
        }
        self._config_path.write_text(json.dumps(config))

    def start(self) -> None:
        read_fd, write_fd = os.pipe()
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "shm_server", "--config", str(self._config_path)),
                    *("--socket", str(self.socket_path), "--ready-fd", str(write_fd)),
                ],
                cwd=ROOT,
                pass_fds=[write_fd],
                stderr=log,
            )
        os.close(write_fd)
        with open(read_fd, "rb") as ready:
            assert ready.read() == b"ready\n", self.log_path.read_text()

    def kill(self) -> None:
        """kill -9."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        """SIGTERM, and no traceback in its log."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGCONT)
            self._process.terminate()
            assert self._process.wait(30) == 0, self.log_path.read_text()
        assert "Traceback" not in self.log_path.read_text(), self.log_path.read_text()
