"""A disk of 1 MiB for every test of the command sets."""

from __future__ import annotations

import pytest

from tests.commands.bench import Bench


@pytest.fixture
def disk() -> Bench:
    return Bench()
