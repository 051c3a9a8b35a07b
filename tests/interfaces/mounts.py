"""A served instance with its volumes mounted on a directory, and its certain end."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from iscsi_ovs.shm_client import Context
from tests import tools
from tests.interop import processes
from tests.interop.serving import Serve, iscsi_ovs

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


class Mount:
    """``iscsi-ovs mount`` on an instance."""

    def __init__(self, serve: Serve, directory: Path) -> None:
        self.serve = serve
        self.directory = directory

    def path(self, volume: str) -> Path:
        return self.directory / f"{volume}.raw"

    def row(self, volume: str) -> dict[str, object]:
        """What ``volume show`` says."""
        shown = self.serve.volume("show", volume)
        assert shown.returncode == 0, shown.stderr
        return dict(line.split(": ", 1) for line in shown.stdout.splitlines() if ": " in line)

    def snapshot(self, command: str, *arguments: str, code: int = 0) -> str:
        """``iscsi-ovs snapshot``."""
        return run("snapshot", command, "--state-dir", self.serve.state_dir, *arguments, code=code)

    def lets_go(self, name: str) -> bool:
        """Nobody has the volume or snapshot open."""
        with Context(state_dir=self.serve.state_dir) as context:
            return all(handle.volume != name for handle in context.list_handles())

    def allocated(self, volume: str) -> int:
        return int(str(self.row(volume)["allocated_bytes"]))

    def until_let_go(self, volume: str) -> None:
        """Linux releases a file moments after its last close."""
        processes.wait_until(lambda: self.row(volume)["held"] == "-", 5.0, f"{volume} let go")


def run(*arguments: str | Path, code: int = 0) -> str:
    """A command of iscsi-ovs; what it said, on both streams."""
    ran = subprocess.run(
        iscsi_ovs(*map(str, arguments)), stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=ROOT, timeout=60,
        check=False,
    )  # fmt: skip
    said = ran.stdout + ran.stderr
    assert ran.returncode == code, said
    assert "Traceback" not in said, said
    return said


def shell(*command: str | Path, code: int = 0) -> str:
    """A foreign program."""
    ran = subprocess.run(
        [*map(str, command)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60, check=False,
        env={**os.environ, "LC_ALL": "C"},
    )  # fmt: skip
    assert ran.returncode == code, ran.stdout + ran.stderr
    return ran.stdout + ran.stderr


@contextmanager
def mounted(directory: Path, volumes: dict[str, str]) -> Iterator[Mount]:
    """Serve the volumes and mount them on ``directory``/m; afterwards nothing of it is left."""
    tools.require_fuse()
    point = directory / "m"
    point.mkdir()
    with Serve(directory / "s", volumes) as serve:
        try:
            run("mount", point, "--state-dir", serve.state_dir)
            yield Mount(serve, point)
            run("unmount", point)
        finally:
            subprocess.run(["fusermount3", "-u", "-z", "--", str(point)], capture_output=True, check=False)
