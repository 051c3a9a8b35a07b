"""Names → UUID, size, generation, durably: sqlite in WAL mode, every commit synced (about 0.3 ms).

A volume is entered as "creating" before its store is made and as "removing" before its store goes, so that a crash in
between is seen, and undone, at the next start. The format has a number; a newer one than ours is refused by name.

A volume also has named records, opaque to us, replaced by compare-and-swap on their version (CONTRACTS 6: the state
that several initiators share). They go with the volume. A snapshot can be a disk, too: it has its own, by its identity.

SQLite's log has its space from the start (LOG_ROOM_BYTES), for on a full disk it is the catalogue that has to write
before anything can be removed.
"""

from __future__ import annotations

import errno
import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from shm_server.stores import linux
from shm_server.volumes.sanitizing import Sanitizing

FORMAT = 5  # 1 had no records, 2 no sanitize operations, 3 no layers and snapshots, 4 no identities and no templates
APPLICATION_ID = 0x4F565343  # "OVSC"

_SCHEMA = """
CREATE TABLE volumes (
    name TEXT PRIMARY KEY,
    uuid TEXT NOT NULL UNIQUE,
    size_bytes INTEGER NOT NULL,
    generation INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('creating', 'ready', 'removing'))
) WITHOUT ROWID;
"""
_RECORDS_SCHEMA = """
CREATE TABLE records (
    uuid TEXT NOT NULL,
    record TEXT NOT NULL,
    version INTEGER NOT NULL,
    data BLOB NOT NULL,
    PRIMARY KEY (uuid, record)
);
"""
_SANITIZE_SCHEMA = """
CREATE TABLE sanitize (
    uuid TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    size_bytes INTEGER NOT NULL,
    patterns BLOB NOT NULL,
    passes INTEGER NOT NULL,
    may_exit INTEGER NOT NULL,
    done_bytes INTEGER NOT NULL,
    failure INTEGER NOT NULL
) WITHOUT ROWID;
"""
_LAYERS_SCHEMA = """
CREATE TABLE layers (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    uuid TEXT NOT NULL,
    parent INTEGER,
    file TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('creating', 'open', 'sealed', 'garbage'))
);
CREATE INDEX layers_by_parent ON layers (parent);
CREATE INDEX layers_by_uuid ON layers (uuid);
CREATE TABLE tops (
    uuid TEXT PRIMARY KEY,
    layer INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE snapshots (
    uuid TEXT NOT NULL,
    name TEXT NOT NULL,
    layer INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    created_s REAL NOT NULL,
    PRIMARY KEY (uuid, name)
) WITHOUT ROWID;
CREATE INDEX snapshots_by_layer ON snapshots (layer);
"""
_LIFE_SCHEMA = """
ALTER TABLE snapshots ADD COLUMN identity TEXT NOT NULL DEFAULT '';
UPDATE snapshots SET identity = lower(hex(randomblob(16)));
CREATE INDEX snapshots_by_identity ON snapshots (identity);
ALTER TABLE snapshots ADD COLUMN labels TEXT NOT NULL DEFAULT '{}';
ALTER TABLE snapshots ADD COLUMN metadata BLOB NOT NULL DEFAULT x'';
ALTER TABLE volumes ADD COLUMN is_template INTEGER NOT NULL DEFAULT 0;
ALTER TABLE volumes ADD COLUMN stem TEXT;
CREATE TABLE promotions (
    uuid TEXT PRIMARY KEY,
    layer INTEGER NOT NULL,
    done_bytes INTEGER NOT NULL
) WITHOUT ROWID;
"""
# What each format brought.
_ADDED = {1: _SCHEMA, 2: _RECORDS_SCHEMA, 3: _SANITIZE_SCHEMA, 4: _LAYERS_SCHEMA, 5: _LIFE_SCHEMA}
assert list(_ADDED) == list(range(1, FORMAT + 1))
MAX_RECORDS = 16  # of one volume
LOG_ROOM_BYTES = 5 << 20  # SQLite writes 1000 pages (4 MiB) before it begins anew; the rest is for a disk that is full
ROOM_SHARE = 64  # and no more than this part of a file system
NAMED_CLONES = 5  # in a message: there may be thousands


@dataclass(frozen=True, slots=True)
class Record:
    name: str
    uuid: str
    size_bytes: int
    generation: int
    is_template: bool = False
    stem: str | None = None  # of its files' names, where that is not its name

    @property
    def files(self) -> str:
        """What the names of its files begin with."""
        return self.stem or self.name


class Versioned(NamedTuple):
    """What a volume keeps under a name. Version 0: nothing yet."""

    version: int
    data: bytes


class Database(Protocol):
    """What a catalogue needs of a connection, and sqlite3's has; errors are sqlite3.DatabaseError."""

    @property
    def in_transaction(self) -> bool: ...

    def execute(self, query: str, values: Sequence[Any] = ..., /) -> Any: ...

    def close(self) -> None: ...


def connect(path: str) -> Database:
    """Transactions are begun and ended by hand; threads take turns by a lock."""
    return sqlite3.connect(path, isolation_level=None, check_same_thread=False)


class Catalog:
    """One at a time on a pool (the pool is locked). Calls may come from any threads: each waits for the one before."""

    def __init__(self, path: Path | None, connect: Callable[[str], Database] = connect) -> None:
        """``path`` None: in memory, for stores that die with the process. ``connect``: another way to SQLite."""
        self._path = path
        self._lock = threading.Lock()  # a transaction each, so nobody waits for more than a commit
        self._has_room = path is None
        self._database = connect(":memory:" if path is None else str(path))
        try:
            self._prepare()
        except sqlite3.DatabaseError as error:
            self._database.close()
            raise OSError(errno.EIO, f"catalogue {path}: {error}") from None
        except OSError:
            self._database.close()
            raise

    def _prepare(self) -> None:
        execute = self._database.execute
        execute("PRAGMA journal_mode=WAL")
        execute("PRAGMA synchronous=FULL")
        (application,) = execute("PRAGMA application_id").fetchone()
        (version,) = execute("PRAGMA user_version").fetchone()
        if application != APPLICATION_ID and (application, version) != (0, 0):
            raise OSError(errno.EINVAL, f"{self._path} is not a volume catalogue")
        if version > FORMAT:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"catalogue {self._path} has format {version}, this server knows up to {FORMAT}: "
                f"a newer shm-server wrote it",
            )
        if version < FORMAT:
            execute("BEGIN IMMEDIATE")
            for number in range(version + 1, FORMAT + 1):
                for statement in _ADDED[number].split(";"):
                    execute(statement)
            execute(f"PRAGMA application_id={APPLICATION_ID}")
            execute(f"PRAGMA user_version={FORMAT}")
            execute("COMMIT")
        # What a killed server committed and did not come to sync is read, and so promised; a checkpoint syncs it.
        execute("PRAGMA wal_checkpoint").fetchone()
        self._make_room()

    def _make_room(self) -> None:
        """Blocks behind the end of SQLite's log, which keeps them until it is closed."""
        try:
            fd = os.open(f"{self._path}-wal", os.O_RDWR | os.O_CLOEXEC)  # SQLite's locks are on other files
        except FileNotFoundError:
            return
        try:
            statistics = os.fstatvfs(fd)
            room = min(LOG_ROOM_BYTES, statistics.f_blocks * statistics.f_frsize // ROOM_SHARE)
            linux.fallocate(fd, linux.FALLOC_FL_KEEP_SIZE, 0, room)
            self._has_room = True
        except OSError as error:
            self._has_room = error.errno == errno.EOPNOTSUPP  # as much as there will be; else it is tried again
        finally:
            os.close(fd)

    def load(self) -> list[Record]:
        """The volumes that are whole."""
        return self._select("ready")

    def unfinished(self) -> list[Record]:
        """What a crash left half created or half removed."""
        return self._select("creating") + self._select("removing")

    def _select(self, state: str) -> list[Record]:
        rows = self._database.execute(
            "SELECT name, uuid, size_bytes, generation, is_template, stem FROM volumes WHERE state = ? ORDER BY name",
            (state,),
        )
        return [
            Record(name, uuid, size, generation, bool(is_template), stem)
            for name, uuid, size, generation, is_template, stem in rows
        ]

    def begin_create(self, record: Record) -> None:
        with self.transaction() as execute:
            enter(execute, record, "creating")

    def finish_create(self, name: str) -> None:
        self._change("UPDATE volumes SET state = 'ready' WHERE name = ?", (name,))

    def begin_remove(self, name: str) -> None:
        """ENOTEMPTY: clones stand on it."""
        with self.transaction() as execute:
            refuse_clones(execute, "ours.uuid = (SELECT uuid FROM volumes WHERE name = ?)", (name,), f"volume {name}")
            execute("UPDATE volumes SET state = 'removing' WHERE name = ?", (name,))

    def forget(self, name: str) -> None:
        """A volume and all that is its, at once; layers are garbage, but for the base, which goes with the store."""
        with self.transaction() as execute:
            execute(
                "UPDATE layers SET state = 'garbage', parent = NULL "
                "WHERE (parent IS NOT NULL OR file = number || '.data') "
                "AND uuid IN (SELECT uuid FROM volumes WHERE name = ?)",
                (name,),
            )
            execute(
                "DELETE FROM layers WHERE state IN ('open', 'sealed') "
                "AND uuid IN (SELECT uuid FROM volumes WHERE name = ?)",
                (name,),
            )
            forget_snapshots(execute, "uuid IN (SELECT uuid FROM volumes WHERE name = ?)", (name,))
            for table in ("records", "sanitize", "tops", "promotions"):
                execute(f"DELETE FROM {table} WHERE uuid IN (SELECT uuid FROM volumes WHERE name = ?)", (name,))
            execute("DELETE FROM volumes WHERE name = ?", (name,))

    def resize(self, name: str, size_bytes: int, generation: int) -> None:
        self._change("UPDATE volumes SET size_bytes = ?, generation = ? WHERE name = ?", (size_bytes, generation, name))

    def rename(self, record: Record) -> None:
        """The volume with this UUID has this name now, and its files have this stem."""
        self._change("UPDATE volumes SET name = ?, stem = ? WHERE uuid = ?", (record.name, record.stem, record.uuid))

    def _change(self, statement: str, values: tuple[str | int | bytes | None, ...]) -> None:
        with self.transaction() as execute:
            execute(statement, values)

    # Records --------------------------------------------------------------------------------------------------------

    def get_record(self, uuid: str, record: str) -> Versioned:
        """Version 0 where it was never put."""
        try:
            with self._lock:
                return self._present(uuid, record)
        except sqlite3.DatabaseError as error:
            raise OSError(errno.EIO, f"catalogue {self._path}: {error}") from None

    def _present(self, uuid: str, record: str) -> Versioned:
        row = self._database.execute(
            "SELECT version, data FROM records WHERE uuid = ? AND record = ?", (uuid, record)
        ).fetchone()
        return Versioned(0, b"") if row is None else Versioned(*row)

    def put_record(self, uuid: str, record: str, version: int, data: bytes) -> Versioned:
        """Replace version ``version`` of a record, durably. ESTALE: it has another one; ENOENT: no such volume."""
        with self.transaction() as execute:
            whole = execute(
                "SELECT 1 FROM volumes WHERE uuid = ? AND state != 'removing' "
                "UNION SELECT 1 FROM snapshots WHERE identity = ?",
                (uuid, uuid),
            )
            if whole.fetchone() is None:
                raise OSError(errno.ENOENT, f"there is no volume with uuid {uuid}")
            present = self._present(uuid, record).version
            if present != version:
                raise OSError(errno.ESTALE, f"record {record} has version {present}, not {version}")
            if not version:
                (count,) = execute("SELECT count(*) FROM records WHERE uuid = ?", (uuid,)).fetchone()
                if count >= MAX_RECORDS:
                    raise OSError(errno.ENOSPC, f"the volume has {count} records, which is the most it can have")
            execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (uuid, record, version + 1, data))
        return Versioned(version + 1, data)

    # Sanitize operations --------------------------------------------------------------------------------------------

    def sanitizing(self) -> dict[str, Sanitizing]:
        """Those that run or have failed, by the volume's name."""
        rows = self._database.execute("SELECT name, sanitize.* FROM sanitize JOIN volumes USING (uuid)")
        return {
            name: Sanitizing(uuid, kind, size, _cut(patterns, passes), bool(may_exit), done, failure)
            for name, uuid, kind, size, patterns, passes, may_exit, done, failure in rows
        }

    def put_sanitizing(self, order: Sanitizing) -> None:
        self._change(
            "INSERT OR REPLACE INTO sanitize VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            (
                order.uuid,
                order.kind,
                order.size_bytes,
                b"".join(order.patterns),
                len(order.patterns),
                order.may_exit,
                order.done_bytes,
                order.failure,
            ),
        )

    def end_sanitizing(self, uuid: str) -> None:
        self._change("DELETE FROM sanitize WHERE uuid = ?", (uuid,))

    def select(self, query: str, values: Sequence[str | int]) -> list[tuple[Any, ...]]:
        """Rows, for the rooms that keep tables of their own here (lineage.py)."""
        try:
            with self._lock:
                rows: list[tuple[Any, ...]] = self._database.execute(query, values).fetchall()
                return rows
        except sqlite3.DatabaseError as error:
            raise OSError(errno.EIO, f"catalogue {self._path}: {error}") from None

    @contextmanager
    def transaction(self) -> Iterator[Callable[..., Any]]:
        """All of it or, where anything raises, nothing; durable at the end."""
        try:
            with self._lock:
                self._database.execute("BEGIN IMMEDIATE")
                try:
                    yield self._database.execute
                    self._database.execute("COMMIT")  # which may find the disk full, and then leaves it to us
                    if not self._has_room:
                        self._make_room()
                except BaseException:
                    if self._database.in_transaction:
                        self._database.execute("ROLLBACK")
                    raise
        except sqlite3.DatabaseError as error:
            number = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(number, f"catalogue {self._path}: {error}") from None

    def close(self) -> None:
        self._database.close()


def refuse_clones(execute: Callable[..., Any], where: str, values: Sequence[str | int], what: str) -> None:
    """ENOTEMPTY where other volumes stand on layers (``ours``) of a condition: it names them."""
    found = execute(
        "SELECT DISTINCT volumes.name FROM layers AS clone JOIN layers AS ours ON clone.parent = ours.number "
        f"JOIN volumes ON volumes.uuid = clone.uuid WHERE clone.uuid != ours.uuid AND {where} ORDER BY volumes.name",
        values,
    )
    if clones := [row[0] for row in found.fetchall()]:
        more = f" and {len(clones) - NAMED_CLONES} more" if len(clones) > NAMED_CLONES else ""
        raise OSError(errno.ENOTEMPTY, f"clones stand on {what}: {', '.join(clones[:NAMED_CLONES])}{more}")


def forget_snapshots(execute: Callable[..., sqlite3.Cursor], where: str, values: Sequence[str | int]) -> None:
    """Those of a condition, with the records that are kept for them as disks."""
    execute(f"DELETE FROM records WHERE uuid IN (SELECT identity FROM snapshots WHERE {where})", values)
    execute(f"DELETE FROM snapshots WHERE {where}", values)


def enter(execute: Callable[..., sqlite3.Cursor], record: Record, state: str) -> None:
    """A volume that is new, in a transaction."""
    columns = "name, uuid, size_bytes, generation, is_template, stem, state"
    execute(f"INSERT INTO volumes ({columns}) VALUES (?, ?, ?, ?, ?, ?, ?)", (*astuple(record), state))


def _cut(patterns: bytes, passes: int) -> tuple[bytes, ...]:
    """Patterns of one length, as they were before they stood one behind the other."""
    length = len(patterns) // passes if passes else 0
    return tuple(patterns[number * length : (number + 1) * length] for number in range(passes))
