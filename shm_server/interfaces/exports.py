"""Volumes served to virtual machines: one Unix socket an export, one front end at a time behind each.

An export holds its volume from the moment that its socket listens until it is ended, whether a machine runs or not: who
else would write is told so at once (CONTRACTS 5), and not a guest when it starts. A front end that comes while another
is there waits in the socket's queue; it is accepted when the last request of the one before has come back.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from shm_server.abi import names
from shm_server.interfaces.front_end import FrontEnd, Watching
from shm_server.interfaces.messages import ProtocolError
from shm_server.locks import listen
from shm_server.manager import Manager
from shm_server.runtime import Job, Runtime
from shm_server.volumes.handle import Handle

log = logging.getLogger(__name__)

MAX_EXPORTS = 64
ACCEPT_RETRY_S = 1.0

_CREDENTIALS = struct.Struct("=III")  # pid, uid, gid


@dataclass(frozen=True, slots=True)
class ExportRule:
    """An export that the configuration asks for, at the server's start or when the volume is made."""

    volume: str
    path: Path
    is_read_only: bool = False


class _Export:
    def __init__(self, path: Path, handle: Handle, listener: socket.socket) -> None:
        self.path = path
        self.handle = handle
        self.listener = listener
        self.front_end: FrontEnd | None = None
        self.is_ended = False


class Exports:
    """Belongs to the server's loop, which asks ``serve``, ``arm`` and so on of it as of the rings."""

    def __init__(self, runtime: Runtime, manager: Manager, watching: Watching, allowed_uids: Sequence[int]) -> None:
        self._runtime = runtime
        self._manager = manager
        self._watching = watching
        self._allowed_uids = frozenset((0, os.getuid(), *allowed_uids))
        self._is_public = bool(allowed_uids)
        self._exports: dict[Path, _Export] = {}
        self._beginning: set[Path] = set()
        self.front_ends: tuple[FrontEnd, ...] = ()
        self._next_handle = 0
        self._rules: Sequence[ExportRule] = ()

    # Management -----------------------------------------------------------------------------------------------------

    def begin(self, rules: Sequence[ExportRule]) -> None:
        """What the configuration asks for, now or as soon as the volume is made."""
        self._rules = rules
        for name in {rule.volume for rule in rules}:
            self.volume_created(name)

    def volume_created(self, name: str) -> None:
        for rule in self._rules:
            if rule.volume == name:
                wanted = self.export(name, rule.path, is_read_only=rule.is_read_only)
                Job(wanted, partial(_begun, rule)).start()

    async def export(self, name: str, path: Path, *, is_read_only: bool) -> None:
        """Listen at ``path``; a snapshot is read-only in any case. ENOENT, EBUSY naming who writes, EEXIST, EADDRINUSE,
        EMFILE."""
        if not path.is_absolute():
            raise OSError(errno.EINVAL, f"the socket's path {path} is not absolute")
        if path in self._exports or path in self._beginning:
            raise OSError(errno.EEXIST, f"there is an export at {path} already")
        if len(self._exports) + len(self._beginning) >= MAX_EXPORTS:
            raise OSError(errno.EMFILE, f"there are {MAX_EXPORTS} exports, which is the most there can be")
        is_read_only = is_read_only or names.is_snapshot(name)
        self._beginning.add(path)
        self._next_handle += 1
        try:
            handle = await self._manager.open(
                name,
                "r" if is_read_only else "rw",
                "",
                f"vhost-user export {path}",
                os.getpid(),
                self._next_handle,
                lambda: True,
            )
            try:
                listener = listen(path, is_public=self._is_public)
            except OSError:
                await self._manager.close(handle)
                raise
        finally:
            self._beginning.discard(path)
        export = self._exports[path] = _Export(path, handle, listener)
        self._listen(export)
        log.info("volume %s is exported at %s%s", name, path, ", read-only" if is_read_only else "")

    async def unexport(self, name: str) -> None:
        """End every export of the volume; returns when what was under way is over. ENOENT: there is none."""
        found = [export for export in self._exports.values() if export.handle.volume.name == name]
        if not found:
            raise OSError(errno.ENOENT, f"volume {name} is not exported")
        for export in found:
            self._end(export)
        for export in found:
            await self._manager.close(export.handle)

    def release(self, holders: Sequence[Handle]) -> None:
        """Somebody removes the volume by force, and is about to wait for its holders."""
        for export in self._exports.values():
            if export.handle in holders:
                self._runtime.after(0.0, partial(self._let_go, export))

    def _let_go(self, export: _Export) -> None:
        if not export.is_ended:
            self._end(export)
            self._manager.close(export.handle)

    def volume_resized(self, name: str) -> None:
        for export in self._exports.values():
            if export.handle.volume.name == name and export.front_end is not None:
                export.front_end.config_changed()

    def close(self) -> None:
        """The server ends."""
        for export in list(self._exports.values()):
            self._let_go(export)

    def _end(self, export: _Export) -> None:
        export.is_ended = True
        del self._exports[export.path]
        if export.front_end is None:
            self._watching.unwatch(export.listener.fileno())
        if self._is_public:
            self._runtime.close_apart(export.listener.close)  # and whoever waits in its queue, with what he sent
        else:
            export.listener.close()
        export.path.unlink(missing_ok=True)
        if export.front_end is not None:
            export.front_end.drop("")
        log.info("volume %s is not exported at %s any more", export.handle.volume.name, export.path)

    # Front ends -----------------------------------------------------------------------------------------------------

    def _listen(self, export: _Export) -> None:
        if not export.is_ended:
            self._watching.watch(export.listener.fileno(), lambda _events: self._accept(export))

    def _accept(self, export: _Export) -> None:
        try:
            connection, _ = export.listener.accept()
        except BlockingIOError:
            return
        except OSError as error:
            log.error("can't accept a front end at %s, trying again soon: %s", export.path, error.strerror)
            self._watching.unwatch(export.listener.fileno())
            self._runtime.after(ACCEPT_RETRY_S, lambda: self._listen(export))
            return
        credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        pid, uid, _ = _CREDENTIALS.unpack(credentials)
        if uid not in self._allowed_uids:
            log.warning("pid %d of uid %d may not use the export at %s", pid, uid, export.path)
            self._runtime.close_apart(connection.close)
            return
        connection.setblocking(False)
        self._watching.unwatch(export.listener.fileno())
        front_end = FrontEnd(
            self._watching, connection, export.handle, (pid, uid), lambda: self._gone(export, front_end)
        )
        export.front_end = front_end
        self.front_ends = (*self.front_ends, front_end)
        log.info("%s has connected", front_end.words)

    def _gone(self, export: _Export, front_end: FrontEnd) -> None:
        self.front_ends = tuple(other for other in self.front_ends if other is not front_end)
        export.front_end = None
        self._listen(export)

    # The loop -------------------------------------------------------------------------------------------------------

    def serve(self) -> bool:
        """A batch of every guest; False: there was nothing to do."""
        worked = False
        for front_end in self.front_ends:
            try:
                if not front_end.is_closed and front_end.serve():
                    worked = True
            except (ProtocolError, OSError) as error:
                _drop(front_end, error)
            except Exception:
                log.exception("%s: a mistake of the server", front_end.words)
                front_end.drop("a mistake of the server")
        return worked

    def publish(self) -> None:
        """Show the guests what is done."""
        for front_end in self.front_ends:
            try:
                front_end.publish()
            except (ProtocolError, OSError) as error:
                _drop(front_end, error)

    def is_waiting(self) -> bool:
        """Has a guest something that is not begun? Asked while we look for work."""
        for front_end in self.front_ends:
            try:
                if front_end.is_waiting():
                    return True
            except (ProtocolError, OSError) as error:
                _drop(front_end, error)
                return True
        return False

    def arm(self) -> bool:
        """Before sleeping: ask every guest for a kick. False: one has something already."""
        armed = True
        for front_end in self.front_ends:
            try:
                armed = front_end.arm() and armed
            except (ProtocolError, OSError) as error:
                _drop(front_end, error)
                armed = False
        return armed

    def in_flight(self) -> int:
        return sum(len(export.handle.tasks) for export in self._exports.values())


def _begun(rule: ExportRule, _result: object, error: BaseException | None) -> None:
    """That a volume can't be exported is no reason not to serve the others."""
    if error is not None:
        words = (error.strerror if isinstance(error, OSError) else None) or str(error)
        log.warning("volume %s is not exported at %s: %s", rule.volume, rule.path, words)


def _drop(front_end: FrontEnd, error: Exception) -> None:
    front_end.drop((error.strerror if isinstance(error, OSError) else None) or str(error))
