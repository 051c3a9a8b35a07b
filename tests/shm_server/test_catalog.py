"""The catalogue keeps what it was told, and refuses what it does not know."""

from __future__ import annotations

import errno
import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from shm_server.volumes.catalog import MAX_RECORDS, Catalog, Record, Versioned
from shm_server.volumes.lineage import Lineage
from shm_server.volumes.sanitizing import Sanitizing

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
    with pytest.raises(OSError, match="format 7, this server knows up to 5"):
        Catalog(path)


def test_a_commit_that_fails_is_undone() -> None:
    """And stands in nobody's way."""
    catalog = Catalog(None)
    catalog.select("PRAGMA foreign_keys=ON", ())
    catalog.select("CREATE TABLE t (name REFERENCES volumes (name) DEFERRABLE INITIALLY DEFERRED)", ())
    with pytest.raises(OSError, match="FOREIGN KEY"), catalog.transaction() as execute:
        execute("INSERT INTO t VALUES ('nobody')")  # found out by COMMIT
    catalog.begin_create(DEMO)
    assert catalog.unfinished() == [DEMO]
    assert catalog.select("SELECT * FROM t", ()) == []
    catalog.close()


def test_sanitize_operations_are_kept_until_they_end(tmp_path: Path) -> None:
    """Each as it was put last; they go with their volume, too."""
    catalog = Catalog(tmp_path / "c.sqlite")
    other = Record("other", "11" * 16, 8192, 1)
    for record in (DEMO, other):
        catalog.begin_create(record)
        catalog.finish_create(record.name)
    first = Sanitizing(DEMO.uuid, "overwrite", 4096, (b"ab\0", b"cde"), True, 512)
    second = Sanitizing(other.uuid, "block erase", 8192, may_exit=True, failure=errno.EIO)
    for order in (replace(first, done_bytes=0), first, second):
        catalog.put_sanitizing(order)
    catalog.close()
    again = Catalog(tmp_path / "c.sqlite")
    assert again.sanitizing() == {"demo": first, "other": second}
    again.end_sanitizing(DEMO.uuid)
    again.begin_remove("other")
    again.forget("other")
    assert again.sanitizing() == {}
    again.close()


LAYERS = ["layers", "tops", "snapshots"]
NEW_COLUMNS = [  # of format 5
    ("volumes", "is_template"),
    ("volumes", "stem"),
    ("snapshots", "identity"),
    ("snapshots", "labels"),
    ("snapshots", "metadata"),
]


def become_older(database: sqlite3.Connection, version: int) -> None:
    """At most format 4."""
    database.execute("DROP TABLE promotions")
    database.execute("DROP INDEX snapshots_by_identity")
    for table, column in NEW_COLUMNS:
        database.execute(f"ALTER TABLE {table} DROP COLUMN {column}")
    database.execute(f"PRAGMA user_version={version}")


@pytest.mark.parametrize(
    ("version", "missing"), [(1, ["records", "sanitize", *LAYERS]), (2, ["sanitize", *LAYERS]), (3, LAYERS), (4, [])]
)
def test_an_older_catalogue_gets_what_it_lacks(tmp_path: Path, version: int, missing: list[str]) -> None:
    """Older formats are brought to ours when they are opened; their volumes stay."""
    path = tmp_path / "c.sqlite"
    catalog = Catalog(path)
    catalog.begin_create(DEMO)
    catalog.finish_create("demo")
    catalog.close()
    database = sqlite3.connect(path)
    become_older(database, version)
    for table in missing:
        database.execute(f"DROP TABLE {table}")
    database.close()
    again = Catalog(path)
    assert again.load() == [DEMO]
    assert again.sanitizing() == {}
    assert again.put_record(DEMO.uuid, "modes", 0, b"x") == Versioned(1, b"x")
    again.close()
    third = Catalog(path)
    assert third.get_record(DEMO.uuid, "modes") == Versioned(1, b"x")
    third.close()


def test_snapshots_of_an_older_catalogue_get_an_identity(tmp_path: Path) -> None:
    """Each its own, and it keeps that."""
    path = tmp_path / "c.sqlite"
    Catalog(path).close()
    database = sqlite3.connect(path)
    become_older(database, 4)
    for row in ((DEMO.uuid, "a", 1), (DEMO.uuid, "b", 2)):
        database.execute("INSERT INTO snapshots VALUES (?, ?, ?, 4096, 0.5)", row)
    database.commit()
    database.close()
    seen = []
    for _ in range(2):
        catalog = Catalog(path)
        seen.append(Lineage(catalog).snapshots(DEMO.uuid))
        catalog.close()
    identities = [snapshot.identity for snapshot in seen[0]]
    assert seen[0] == seen[1]
    assert len(set(identities)) == 2
    assert all(len(bytes.fromhex(identity)) == 16 for identity in identities)


@pytest.fixture
def catalog(tmp_path: Path) -> Iterator[Catalog]:
    opened = Catalog(tmp_path / "c.sqlite")
    opened.begin_create(DEMO)
    opened.finish_create("demo")
    yield opened
    opened.close()


def test_a_record_is_replaced_by_version(catalog: Catalog) -> None:
    """Only who names the present version replaces it; a refused one changes nothing."""
    assert catalog.get_record(DEMO.uuid, "modes") == Versioned(0, b"")
    assert catalog.put_record(DEMO.uuid, "modes", 0, b"one") == Versioned(1, b"one")
    assert catalog.put_record(DEMO.uuid, "modes", 1, b"") == Versioned(2, b"")
    for stale in (0, 1, 3, -1, 1 << 70):
        with pytest.raises(OSError, match="version 2, not") as caught:
            catalog.put_record(DEMO.uuid, "modes", stale, b"two")
        assert caught.value.errno == errno.ESTALE
    assert catalog.get_record(DEMO.uuid, "modes") == Versioned(2, b"")
    assert catalog.get_record(DEMO.uuid, "others") == Versioned(0, b"")


def test_records_go_with_the_volume(catalog: Catalog) -> None:
    """Another volume's stay; one that is gone, or on its way, takes none."""
    other = Record("other", "11" * 16, 4096, 1)
    catalog.begin_create(other)
    catalog.finish_create("other")
    catalog.put_record(DEMO.uuid, "modes", 0, b"one")
    catalog.put_record(other.uuid, "modes", 0, b"two")
    catalog.begin_remove("demo")
    for _ in range(2):
        with pytest.raises(OSError) as caught:
            catalog.put_record(DEMO.uuid, "modes", 1, b"late")
        assert caught.value.errno == errno.ENOENT
        catalog.forget("demo")
    assert catalog.get_record(DEMO.uuid, "modes") == Versioned(0, b"")
    assert catalog.get_record(other.uuid, "modes") == Versioned(1, b"two")


def test_a_volume_has_so_many_records(catalog: Catalog) -> None:
    """ENOSPC for one more; those that are there can be replaced."""
    for number in range(MAX_RECORDS):
        catalog.put_record(DEMO.uuid, f"r{number}", 0, b"")
    with pytest.raises(OSError) as caught:
        catalog.put_record(DEMO.uuid, "more", 0, b"")
    assert caught.value.errno == errno.ENOSPC
    assert catalog.put_record(DEMO.uuid, "r0", 1, b"x").version == 2


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
