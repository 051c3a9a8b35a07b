"""Where the crash tests have their disks: in memory, whatever their stores believe."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shm_server.crash.judge import Judge


@pytest.fixture
def directory() -> Iterator[Path]:
    made = Path(tempfile.mkdtemp(dir="/dev/shm"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def judge(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Judge:
    place = directory / "judged"
    place.mkdir()
    return Judge(place, monkeypatch)
