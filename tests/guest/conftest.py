"""What the guest tests share: a network of the test's own, and a directory whose path is the same in the guest."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.guest.uml import GuestNetwork


@pytest.fixture
def network() -> Iterator[GuestNetwork]:
    with GuestNetwork() as made:
        yield made
