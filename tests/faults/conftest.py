"""A volume server with targets on it; everything is stopped behind the test, and none of it may have failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.targets import Bench, Disk, ThreadTarget


@pytest.fixture
def bench(short_dir: Path) -> Iterator[Bench]:
    made = Bench(short_dir)
    yield made
    made.close()


@pytest.fixture
def target(bench: Bench) -> ThreadTarget:
    """In this process, on the bench's volumes."""
    bench.serve()
    return bench.target()


@pytest.fixture
def disk(bench: Bench, target: ThreadTarget) -> Disk:
    """A session with it."""
    return bench.login(target)
