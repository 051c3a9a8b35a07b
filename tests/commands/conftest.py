"""A disk of 1 MiB for every test of the command sets."""

from __future__ import annotations

import pytest

from iscsi_ovs import block
from tests.commands.bench import Bench


@pytest.fixture
def disk() -> Bench:
    return Bench()


@pytest.fixture
def atomic(disk: Bench) -> Bench:
    """A store that can write 64 KiB atomically."""
    disk.device.features = block.Features(max_atomic_write_bytes=64 << 10)
    return disk
