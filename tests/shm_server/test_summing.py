"""Making the checksums of a sealed layer, step by step."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shm_server.stores import summing
from shm_server.stores.base import LayerFile
from shm_server.stores.checked import STEP_PAGES, Checks
from shm_server.stores.checksums import PAGE_BYTES, sums_of

PAGES = 4 * STEP_PAGES
LAYER = LayerFile(7, "5" * 32, "7.data", is_base=False, is_sealed=True)


def page_of(number: int) -> bytes:
    return number.to_bytes(4, "little") * (PAGE_BYTES // 4)


def write(path: Path, pages: list[int]) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT)
    os.ftruncate(fd, PAGES * PAGE_BYTES)
    for page in pages:
        os.pwrite(fd, page_of(page), page * PAGE_BYTES)
    os.close(fd)


@pytest.mark.parametrize("apart", [1, 2, 3, STEP_PAGES - 1, STEP_PAGES, STEP_PAGES + 1])
def test_pages_that_lie_apart_are_taken_together(short_dir: Path, apart: int) -> None:
    """No more steps than the layer has MiB, or has pages; each page has its checksum, holes have none."""
    pages = list(range(1, PAGES, apart))
    write(short_dir / LAYER.name, pages)
    checks = Checks(short_dir)
    steps = list(summing.complete(LAYER, checks))
    assert sum(steps) == len(pages) * PAGE_BYTES
    assert len(steps) <= min(PAGES // STEP_PAGES + 1, len(pages))
    expected = [0] * PAGES
    for page in pages:
        (expected[page],) = sums_of(memoryview(page_of(page)))
    assert list(checks.sums(LAYER).entries(0, PAGES)) == expected
    assert summing.is_complete(LAYER, checks)
    checks.close()


def test_what_has_a_checksum_keeps_it(short_dir: Path) -> None:
    """Between others that have none yet: a page that has rotted since is not made good."""
    write(short_dir / LAYER.name, [2])
    checks = Checks(short_dir)
    list(summing.complete(LAYER, checks))
    (before,) = checks.sums(LAYER).entries(2, 1)
    checks.sums(LAYER).cover(0)
    write(short_dir / LAYER.name, [1, 2, 3, 5])
    fd = os.open(short_dir / LAYER.name, os.O_RDWR)
    os.pwrite(fd, b"rot", 2 * PAGE_BYTES)
    os.close(fd)
    assert list(summing.complete(LAYER, checks)) == [4 * PAGE_BYTES]
    found = checks.sums(LAYER).entries(0, 7)
    assert found[2] == before
    assert [bool(each) for each in found] == [False, True, True, True, False, True, False]
    checks.close()
