"""What the tests of the door share."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.shm_server.conftest import ServerProcess
from tests.shm_server.interfaces.machines import Machines


@pytest.fixture
def machines(server: ServerProcess, tmp_path: Path) -> Iterator[Machines]:
    made = Machines(server, tmp_path)
    yield made
    made.close()
    assert "mistake of the server" not in server.log()
