"""Records of volumes and of snapshots: small, named, opaque bytes that several clients share, replaced by version.

One transaction of the catalogue decides who was first, on a thread of its own: a reservation waits neither for who
opens or resizes its volume nor for a store that is being made or removed (CONTRACTS 6).
"""

from __future__ import annotations

import errno
import logging
import re
from collections.abc import Callable
from typing import Protocol

from shm_server.abi.control import MAX_RECORD_BYTES
from shm_server.manager import ACK_LIMIT_S, Manager
from shm_server.runtime import Call, Lane, Runtime, Wait
from shm_server.volumes.catalog import Catalog, Versioned
from shm_server.volumes.handle import Handle

log = logging.getLogger(__name__)

NAME_RULE = "[a-z][a-z0-9-]{0,30}"
_NAME = re.compile(NAME_RULE)


class RecordWatcher(Protocol):
    """Whoever wants to know. Called on the loop's thread, after the change is durable."""

    def record_changed(
        self, volume: tuple[str, str], record: str, changed: Versioned, holders: list[Handle], by: object
    ) -> Wait[None]:
        """Tell the holders; ``volume`` is name and uuid. The result is set when they all have acted on it."""
        ...


class Records:
    def __init__(self, runtime: Runtime, catalog: Catalog, manager: Manager, watcher: RecordWatcher) -> None:
        self._runtime = runtime
        self._catalog = catalog
        self._manager = manager
        self._watcher = watcher
        self._lane = Lane(1)

    async def get(self, name: str, record: str) -> Versioned:
        """ENOENT: no such volume; EINVAL: no name for a record. Version 0 where it was never put."""
        _check(record)
        found: Versioned = await self._on_thread(lambda: self._catalog.get_record(self._manager.identity(name), record))
        return found

    async def put(self, name: str, record: str, version: int, data: bytes, by: object = None) -> Versioned:
        """Replace version ``version``: ESTALE where it is another; E2BIG. Waits (bounded) until the holders know."""
        _check(record)
        if len(data) > MAX_RECORD_BYTES:
            raise OSError(errno.E2BIG, f"a record of {len(data)} bytes (at most {MAX_RECORD_BYTES})")

        def replace() -> tuple[str, Versioned]:
            uuid = self._manager.identity(name)
            return uuid, self._catalog.put_record(uuid, record, version, data)

        uuid: str
        changed: Versioned
        uuid, changed = await self._on_thread(replace)
        known = self._watcher.record_changed((name, uuid), record, changed, self._manager.holders(name), by)
        if not await self._runtime.wait(known, ACK_LIMIT_S):
            log.warning("volume %s: a holder did not acknowledge its %s within %g s", name, record, ACK_LIMIT_S)
        return changed

    def _on_thread(self, function: Callable[[], object]) -> Call:
        return Call(self._runtime, self._lane, function)


def _check(record: str) -> None:
    if not _NAME.fullmatch(record):
        raise OSError(errno.EINVAL, f"{record!r} is no name of a record: {NAME_RULE}")
