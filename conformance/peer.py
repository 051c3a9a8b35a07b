"""Debian's tgtd under the same suite: what another user-space target is told by the same judge, in the same run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from conformance import runs
from conformance.runs import Lun, Results
from tests.interop.tgtd import Tgtd, free_port

NAME = "tgtd"
SIZE_BYTES = 24 << 20


def run(directory: Path, tell: Callable[[str], None]) -> Results:
    """All families on one LUN, thinly provisioned as ours are."""
    path = directory / "peer.img"
    with path.open("wb") as image:
        image.truncate(SIZE_BYTES)
    with Tgtd(f"127.0.0.1:{free_port()}", {NAME: path}, thin=True) as serving:
        return runs.run([Lun(NAME, serving.url(NAME), serving.url(NAME))], list(runs.suite()), tell)
