"""Names → UUID, size, generation, durably: sqlite in WAL mode, every commit synced (about 0.3 ms).

A volume is entered as "creating" before its store is made and as "removing" before its store goes, so that a crash in
between is seen, and undone, at the next start. The format has a number; a newer one than ours is refused by name.
"""

from __future__ import annotations

import errno
import sqlite3
from dataclasses import dataclass
from pathlib import Path

FORMAT = 1
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


@dataclass(frozen=True, slots=True)
class Record:
    name: str
    uuid: str
    size_bytes: int
    generation: int


class Catalog:
    """One at a time on a pool (the pool is locked). Calls may come from any thread, one at a time."""

    def __init__(self, path: Path | None) -> None:
        """``path`` None: in memory, for stores that die with the process."""
        self._path = path
        self._database = sqlite3.connect(
            ":memory:" if path is None else str(path), isolation_level=None, check_same_thread=False
        )
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
        if (application, version) == (0, 0):
            execute("BEGIN IMMEDIATE")
            execute(_SCHEMA)
            execute(f"PRAGMA application_id={APPLICATION_ID}")
            execute(f"PRAGMA user_version={FORMAT}")
            execute("COMMIT")
        elif application != APPLICATION_ID:
            raise OSError(errno.EINVAL, f"{self._path} is not a volume catalogue")
        elif version > FORMAT:
            raise OSError(
                errno.EPROTONOSUPPORT,
                f"catalogue {self._path} has format {version}, this server knows up to {FORMAT}: "
                f"a newer shm-server wrote it",
            )

    def load(self) -> list[Record]:
        """The volumes that are whole."""
        return self._select("ready")

    def unfinished(self) -> list[Record]:
        """What a crash left half created or half removed."""
        return self._select("creating") + self._select("removing")

    def _select(self, state: str) -> list[Record]:
        rows = self._database.execute(
            "SELECT name, uuid, size_bytes, generation FROM volumes WHERE state = ? ORDER BY name", (state,)
        )
        return [Record(*row) for row in rows]

    def begin_create(self, record: Record) -> None:
        self._change(
            "INSERT INTO volumes VALUES (?, ?, ?, ?, 'creating')",
            (record.name, record.uuid, record.size_bytes, record.generation),
        )

    def finish_create(self, name: str) -> None:
        self._change("UPDATE volumes SET state = 'ready' WHERE name = ?", (name,))

    def begin_remove(self, name: str) -> None:
        self._change("UPDATE volumes SET state = 'removing' WHERE name = ?", (name,))

    def forget(self, name: str) -> None:
        self._change("DELETE FROM volumes WHERE name = ?", (name,))

    def resize(self, name: str, size_bytes: int, generation: int) -> None:
        self._change("UPDATE volumes SET size_bytes = ?, generation = ? WHERE name = ?", (size_bytes, generation, name))

    def _change(self, statement: str, values: tuple[str | int, ...]) -> None:
        try:
            self._database.execute(statement, values)
        except sqlite3.DatabaseError as error:
            number = errno.ENOSPC if "full" in str(error) else errno.EIO
            raise OSError(number, f"catalogue {self._path}: {error}") from None

    def close(self) -> None:
        self._database.close()
