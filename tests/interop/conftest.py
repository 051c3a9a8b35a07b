"""Targets for the tests with real initiators: one that a module shares, with a disk for each test, or one's own.

State directories lie on tmpfs, with short paths (a Unix socket's path holds 108 bytes), and are removed.
"""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.interop.serving import Serve


@pytest.fixture(scope="module")
def module_dir() -> Iterator[Path]:
    """A directory on tmpfs for one module's tests."""
    path = Path(tempfile.mkdtemp(prefix="ovs-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def target(module_dir: Path) -> Iterator[Serve]:
    """A running target that the tests of a module share. Each takes a volume of its own with `new_disk`."""
    with Serve(module_dir / "s", {"demo": "64M"}) as serve:
        yield serve
        assert serve.stop() == 0, serve.log_tail()


_numbers = itertools.count(1)


@pytest.fixture
def new_disk(target: Serve) -> Callable[[str], str]:
    """Creates a volume while the target runs, and returns its URL."""

    def create(size: str) -> str:
        name = f"t{next(_numbers)}"
        created = target.volume("create", name, size)
        assert created.returncode == 0, created.stderr
        url = target.url("demo").replace(":demo/", f":{name}/")
        assert url != target.url("demo")
        return url

    return create


@pytest.fixture
def make_serve(short_dir: Path) -> Iterator[Callable[..., Serve]]:
    """Makes `serve` instances of the test's own; what still runs at its end is killed."""
    made: list[Serve] = []

    def make(volumes: dict[str, str] | None = None, **options: object) -> Serve:
        state_dir = short_dir / f"s{len(made)}"
        serve = Serve(state_dir, {"demo": "64M"} if volumes is None else volumes, **options)  # type: ignore[arg-type]
        made.append(serve)
        return serve

    yield make
    for serve in made:
        serve.kill()
