"""SQLite under the recorder: a connection of apsw's, dressed as one of sqlite3's, whose files are noted as the stores'.

SQLite calls the functions of a "VFS" for all that it does to files; apsw lets them be Python's. The database is opened
for itself alone, so that the index of the write-ahead log is in memory and not in a file; what is written and synced
is, call for call, what sqlite3's own connection does (strace shows it). It makes a checkpoint after few pages.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Sequence
from typing import Any

import apsw

from tests.shm_server.crash.recorder import Died, Event, Recorder

CHECKPOINT_PAGES = 12
_LOGS = apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL
_recorder: Recorder | None = None


class _File(apsw.VFSFile):
    def __init__(self, recorder: Recorder, name: Any, flags: list[int]) -> None:
        path = name.filename() if isinstance(name, apsw.URIFilename) else name
        self._recorder = recorder
        self._name = recorder.relative(path)
        self._is_dead = False
        is_new = not os.path.exists(path)
        super().__init__("unix", name, flags)
        if is_new:
            recorder.note(Event("name", recorder.keep(self._name), name=self._name))
        self._inode = os.stat(path).st_ino
        # os_unix.c: the first sync of a log that may have been made here syncs its directory, too.
        self._must_sync_name = bool(flags[0] & _LOGS) and bool(flags[0] & apsw.SQLITE_OPEN_CREATE)
        self._what = self._name.partition("sqlite")[2].strip("-") or "database"

    def _is_alive(self) -> bool:
        """False: whoever opened it is dead, and what he writes goes nowhere."""
        self._is_dead = self._is_dead or self._recorder.is_dead
        return not self._is_dead

    def xWrite(self, data: bytes, offset: int) -> None:  # noqa: N802 - SQLite's name
        if self._is_alive():
            super().xWrite(data, offset)
            self._recorder.note(Event("write", self._inode, offset, bytes(data)))

    def xTruncate(self, size: int) -> None:  # noqa: N802
        if self._is_alive():
            super().xTruncate(size)
            self._recorder.note(Event("size", self._inode, size))

    def xSync(self, flags: int) -> None:  # noqa: N802
        if self._is_alive():
            self._recorder.note(Event("datasync", self._inode, site=f"SQLite: the {self._what}"))
        if self._must_sync_name and self._is_alive():
            self._must_sync_name = False
            self._recorder.note(Event("names", name="", site=f"SQLite: the name of the {self._what}"))


class _Files(apsw.VFS):
    def __init__(self) -> None:
        super().__init__("recorded", "unix")

    def xOpen(self, name: Any, flags: list[int]) -> _File:  # noqa: N802
        assert _recorder is not None
        return _File(_recorder, name, flags)

    def xDelete(self, name: str, sync_directory: bool) -> None:  # noqa: N802
        assert _recorder is not None
        if _recorder.is_dead:
            return
        super().xDelete(name, sync_directory)
        _recorder.note(Event("name", 0, name=_recorder.relative(name)))
        if sync_directory and not _recorder.is_dead:
            _recorder.note(Event("names", name="", site="SQLite: the end of the journal"))


_files = _Files()


class _Rows:
    """Of a query that is over: sqlite3's cursors are used so."""

    def __init__(self, rows: list[tuple[Any, ...]], changed: int) -> None:
        """``changed``: how many rows the last statement that changes any has changed."""
        self._rows = iter(rows)
        self.rowcount = changed

    def __iter__(self) -> Any:
        return self._rows

    def fetchone(self) -> tuple[Any, ...] | None:
        return next(self._rows, None)

    def fetchall(self) -> list[tuple[Any, ...]]:
        return list(self._rows)


class Recorded:
    """What Catalog needs of a connection."""

    def __init__(self, recorder: Recorder, path: str) -> None:
        global _recorder
        _recorder = self._recorder = recorder
        self._connection = apsw.Connection(path, vfs="recorded")
        self.execute("PRAGMA locking_mode=EXCLUSIVE")
        self.execute(f"PRAGMA wal_autocheckpoint={CHECKPOINT_PAGES}")

    @property
    def in_transaction(self) -> bool:
        return self._connection.in_transaction

    def execute(self, query: str, values: Sequence[Any] = (), /) -> _Rows:
        if self._recorder.is_dead:
            raise Died
        try:
            found = list(self._connection.execute(query, values))
            rows = _Rows(found, self._connection.changes())
        except apsw.ConstraintError as error:
            raise sqlite3.IntegrityError(str(error)) from None
        except apsw.Error as error:
            raise sqlite3.OperationalError(str(error)) from None
        if self._recorder.is_dead:
            raise Died
        return rows

    def close(self) -> None:
        """Of a dead one: its locks go, and nothing else happens."""
        self._connection.close()
