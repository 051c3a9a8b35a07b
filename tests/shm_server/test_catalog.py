"""The catalogue keeps what it was told, and refuses what it does not know."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path

import pytest

from shm_server.volumes.catalog import Catalog, Record

DEMO = Record("demo", "00" * 16, 4096, 1)


def test_what_was_committed_is_there_again(tmp_path: Path) -> None:
    """A finished creation and a resize survive closing; an unfinished creation is told apart."""
    catalog = Catalog(tmp_path / "c.sqlite")
    catalog.begin_create(DEMO)
    catalog.finish_create("demo")
    catalog.resize("demo", 8192, 2)
    catalog.begin_create(Record("half", "11" * 16, 4096, 1))
    catalog.close()
    again = Catalog(tmp_path / "c.sqlite")
    assert again.load() == [Record("demo", "00" * 16, 8192, 2)]
    assert [record.name for record in again.unfinished()] == ["half"]
    again.begin_remove("demo")
    assert [record.name for record in again.unfinished()] == ["half", "demo"]
    again.forget("demo")
    again.forget("half")
    assert again.load() == again.unfinished() == []
    again.close()


def test_a_newer_format_is_refused_by_number(tmp_path: Path) -> None:
    """A catalogue that a newer server wrote is not touched, and both numbers are said."""
    path = tmp_path / "c.sqlite"
    Catalog(path).close()
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=7")
    database.close()
    with pytest.raises(OSError, match="format 7, this server knows up to 1"):
        Catalog(path)


def test_something_else_is_no_catalogue(tmp_path: Path) -> None:
    """Another sqlite file, or no sqlite file at all, is refused by name."""
    path = tmp_path / "c.sqlite"
    database = sqlite3.connect(path)
    database.execute("PRAGMA application_id=5")
    database.execute("CREATE TABLE t (x)")
    database.close()
    with pytest.raises(OSError, match="not a volume catalogue"):
        Catalog(path)
    path.write_bytes(b"hello, this is text\n" * 400)
    with pytest.raises(OSError) as caught:
        Catalog(path)
    assert caught.value.errno == errno.EIO
