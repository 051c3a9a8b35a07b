"""An image has its name only when it is whole and durable; what fails leaves nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from iscsi_ovs.images import files
from iscsi_ovs.images.image import ImageError


def test_whole(tmp_path: Path) -> None:
    """Nobody sees the name before the block ends; only the owner can read it."""
    path = tmp_path / "a.raw"
    with files.destination(path, may_replace=False) as fd:
        os.write(fd, b"data")
        assert not path.exists()
    assert path.read_bytes() == b"data"
    assert path.stat().st_mode & 0o777 == 0o600
    assert os.listdir(tmp_path) == ["a.raw"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), OSError(errno.EIO, "no"), ImageError("no")], ids=repr)
def test_failed(tmp_path: Path, error: BaseException) -> None:
    """Whatever ends it: an old file stays as it was, and no new one is left."""
    path = tmp_path / "a.raw"
    path.write_bytes(b"old")

    def fail() -> None:
        with files.destination(path, may_replace=True) as fd:
            os.write(fd, b"new")
            raise error

    with pytest.raises(type(error)):
        fail()
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["a.raw"]


def test_where_nothing_can_be_made() -> None:
    """The name that was asked for is told, not the one it has until it is whole."""
    with pytest.raises(FileNotFoundError) as caught, files.destination(Path("/proc/a.raw"), may_replace=False):
        pass
    assert caught.value.filename == "/proc/a.raw"


def test_full(tmp_path: Path) -> None:
    """A full disk is told with the file's name."""
    path = tmp_path / "a.raw"
    with pytest.raises(OSError) as caught, files.destination(path, may_replace=False):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == []


def test_there_already(tmp_path: Path) -> None:
    """A file is replaced by who says so, what is no file by nobody; and not one that came meanwhile."""
    path = tmp_path / "a.raw"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError), files.destination(path, may_replace=False):
        pass
    with files.destination(path, may_replace=True) as fd:
        os.write(fd, b"new")
    assert path.read_bytes() == b"new"
    with pytest.raises(FileExistsError, match="no file"), files.destination(tmp_path, may_replace=True):
        pass
    other = tmp_path / "b.raw"
    with pytest.raises(FileExistsError), files.destination(other, may_replace=False):
        other.write_bytes(b"meanwhile")
    assert other.read_bytes() == b"meanwhile"
    assert sorted(os.listdir(tmp_path)) == ["a.raw", "b.raw"]


def test_source(tmp_path: Path) -> None:
    """A directory or pipe is no image, and nobody waits for it."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(ImageError, match="is no file and no disk"), files.source(path):
            pass
    with pytest.raises(FileNotFoundError), files.source(tmp_path / "none"):
        pass
