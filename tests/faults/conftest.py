"""A volume server with targets on it; everything is stopped behind the test, and none of it may have failed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.targets import Bench


@pytest.fixture
def bench(short_dir: Path) -> Iterator[Bench]:
    made = Bench(short_dir)
    yield made
    made.close()
