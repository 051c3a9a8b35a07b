"""A pool on each medium, with a volume of which every page has its checksum."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from shm_server.volumes.volume import Volume
from tests.shm_server.checksummed import SIZE, full_volume, on
from tests.shm_server.pool import Pool


@pytest.fixture(params=["disk", "memory"])
def directory(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    with on(request.param, tmp_path) as made:
        yield made


@pytest.fixture
def demo_bytes() -> int:
    return SIZE


@pytest.fixture
def volume(pool: Pool) -> Iterator[Volume]:
    with full_volume(pool) as opened:
        yield opened
