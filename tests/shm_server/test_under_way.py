"""What is being done to a volume is said of it as long as it is done, and no longer."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from shm_server.progress import Progress
from shm_server.volumes.volume import Volume
from tests.shm_server.pool import Pool

PAGE = 4096


def test_a_merge(pool: Pool, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of layers whose snapshot was removed, while its steps are taken, whatever else the pool has."""
    pool.run(pool.manager.create("other", 1 << 20))
    for name in ("one", "two"):
        pool.write(volume, 0, name.encode() * PAGE)
        pool.run(pool.snapshots.create("demo", name))
    said: list[tuple[str, ...]] = []
    merge = pool.stores.merge

    def watched(*layers: Any) -> Iterator[Any]:
        for step in merge(*layers):
            said.append(pool.manager.stat("demo").under_way)
            assert pool.manager.stat("other").under_way == ()
            yield step

    monkeypatch.setattr(pool.stores, "merge", watched)
    pool.run(pool.snapshots.remove("demo", "one"))
    pool.settle()
    assert set(said) == {("merging",)}
    assert pool.manager.stat("demo").under_way == ()


def test_a_check(pool: Pool, volume: Volume) -> None:
    """Also two at a time, and where it comes to nothing."""
    pool.write(volume, 0, b"x" * PAGE)
    pool.run(pool.snapshots.create("demo", "one"))
    said: list[tuple[str, ...]] = []
    progress = Progress(lambda: 0.0, lambda done, total: said.append(pool.manager.stat("demo").under_way), lambda: True)
    pool.run(pool.scrubber.check("demo", progress))
    assert set(said) == {("checking",)}
    with pytest.raises(OSError, match="nobody waits"):
        pool.run(pool.scrubber.check("demo", Progress(lambda: 0.0, lambda done, total: None, lambda: False)))
    assert pool.manager.stat("demo").under_way == ()
