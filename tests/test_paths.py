"""Where state and sockets live (CONTRACTS 11)."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from iscsi_ovs import paths


@pytest.fixture(autouse=True)
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_STATE_HOME", "XDG_RUNTIME_DIR", "HOME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("HOME", "/home/somebody")


def test_root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Root's places do not depend on its environment."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setenv("XDG_STATE_HOME", "/elsewhere")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/elsewhere")
    assert paths.state_dir() == Path("/var/lib/iscsi-ovs")
    assert paths.runtime_dir() == Path("/run/iscsi-ovs")
    assert paths.socket_path() == Path("/run/iscsi-ovs/shm.sock")


@pytest.mark.usefixtures("user")
def test_a_user_with_both(monkeypatch: pytest.MonkeyPatch) -> None:
    """$XDG_STATE_HOME and $XDG_RUNTIME_DIR."""
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.state_dir() == Path("/state/iscsi-ovs")
    assert paths.socket_path() == Path("/run/user/1000/iscsi-ovs/shm.sock")


@pytest.mark.usefixtures("user")
@pytest.mark.parametrize("useless", ["", "relative/path"])
def test_a_user_with_neither(monkeypatch: pytest.MonkeyPatch, useless: str) -> None:
    """Under HOME, sockets below the state; what is no absolute path is ignored, as the XDG specification says."""
    monkeypatch.setenv("XDG_STATE_HOME", useless)
    monkeypatch.setenv("XDG_RUNTIME_DIR", useless)
    assert paths.state_dir() == Path("/home/somebody/.local/state/iscsi-ovs")
    assert paths.socket_path() == Path("/home/somebody/.local/state/iscsi-ovs/run/shm.sock")


def test_the_option(monkeypatch: pytest.MonkeyPatch) -> None:
    """--state-dir puts both under one directory, whoever asks."""
    for uid in (0, 1000):
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert paths.state_dir("/x") == Path("/x")
        assert paths.runtime_dir(Path("/x")) == Path("/x/run")
        assert paths.socket_path("x") == Path("x/run/shm.sock")


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    """A uid that nobody knows, as in containers: a sentence that says what to set."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    with pytest.raises(OSError, match="no home directory: set HOME or XDG_STATE_HOME, or use --state-dir") as refused:
        paths.socket_path()
    assert refused.value.errno == errno.EINVAL


@pytest.mark.usefixtures("user")
def test_a_user_without_a_runtime_directory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets are below the state, wherever that is."""
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/state")
    assert paths.runtime_dir() == Path("/home/u/state/iscsi-ovs/run")
