"""What every test shares: one hypothesis profile, and short-lived directories with short names on tmpfs."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from iscsi_ovs.shm_client import Context
from tests.interop.serving import Serve

# Deadlines measure the machine, not the code, on two busy cores. A failing example is printed whole, to be committed.
settings.register_profile(
    "here", deadline=None, print_blob=True, suppress_health_check=[HealthCheck.too_slow], max_examples=100
)
settings.register_profile("soak", parent=settings.get_profile("here"), max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "here"))


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A directory of the test's own on tmpfs. Its path is short because that of a Unix socket holds 108 bytes."""
    path = Path(tempfile.mkdtemp(prefix="ovs-", dir="/dev/shm"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@pytest.fixture(scope="module")
def serve() -> Iterator[Serve]:
    """One running instance with the volume "demo" for a module's tests of the command line."""
    directory = Path(tempfile.mkdtemp(prefix="ovs-", dir="/dev/shm"))
    with Serve(directory / "s", {"demo": "64M"}) as running:
        yield running
        assert running.stop() == 0, running.log_tail()
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def context(serve: Serve) -> Iterator[Context]:
    """A connection to its volume server."""
    with Context(state_dir=serve.state_dir) as made:
        yield made
