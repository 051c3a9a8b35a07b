"""The first vpool.json, directories of our own."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest

from iscsi_ovs import config
from iscsi_ovs.errors import ConfigurationError
from shm_server import config as server_config


def test_first_pool(tmp_path: Path) -> None:
    """The first vpool.json: ours alone, shared memory on, and the volume server takes it as it is."""
    path = tmp_path / "vpool.json"
    assert config.write_first_pool(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    document = json.loads(path.read_text())
    assert document["filesystem"]["fs_enable_shm_interface"] is True
    assert document["shm_interface"]["shm_region_size"] == 268435456
    settings = server_config.load(path)
    assert settings.is_shm_enabled
    assert settings.pool == tmp_path / "pool"


@pytest.mark.parametrize("content", ["{}", "", "not json"])
def test_a_pool_file_that_exists_is_left_alone(tmp_path: Path, content: str) -> None:
    """Whatever is in it."""
    path = tmp_path / "vpool.json"
    path.write_text(content)
    assert not config.write_first_pool(path)
    assert path.read_text() == content


def test_a_pool_file_that_can_not_be_written(tmp_path: Path) -> None:
    """A sentence with the path."""
    path = tmp_path / "missing" / "vpool.json"
    with pytest.raises(ConfigurationError, match=f"can't write {path}: No such file"):
        config.write_first_pool(path)


def test_private_directory(tmp_path: Path) -> None:
    """Made with its parents, nobody else may enter it; one that is there stays as it is."""
    path = tmp_path / "a" / "b"
    before = os.umask(0)
    try:
        config.make_private_directory(path)
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    path.chmod(0o750)
    config.make_private_directory(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o750


def test_private_directory_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it can't be made, or can't be written in: a sentence that says where else to put it."""
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(ConfigurationError, match=f"can't make {path}: .*; choose another place with --state-dir"):
            config.make_private_directory(path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(ConfigurationError, match=f"can't write in {tmp_path}; choose another place with --state-dir"):
        config.make_private_directory(tmp_path)
