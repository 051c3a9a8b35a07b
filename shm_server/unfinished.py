"""Volumes that take their maker more than one step: an image becomes one, say.

Until whoever makes such a volume says that it is whole, the catalogue has it as one that is being created, so the next
start finds that it never was. Where its maker goes before, it goes as well. To everybody else it is a volume like any
other meanwhile, but for clones: nobody can stand on it.
"""

from __future__ import annotations

import errno
import logging

from shm_server.abi.control import VolumeInfo
from shm_server.client import Client
from shm_server.manager import Manager
from shm_server.runtime import Job

log = logging.getLogger(__name__)


class Unfinished:
    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._made_by: dict[Client, set[str]] = {}  # their UUIDs: names may change

    async def create(self, client: Client, name: str, size_bytes: int) -> VolumeInfo:
        """As Manager.create()."""
        info = await self._manager.create(name, size_bytes, is_whole=False)
        self._made_by.setdefault(client, set()).add(info.uuid)
        if client.is_closed:
            self.release(client)
        return info

    async def finish(self, client: Client, name: str) -> VolumeInfo:
        """It is whole, durably. ENOENT; EINVAL: not one that this client makes."""
        uuid = self._manager.record(name).uuid
        if uuid not in self._made_by.get(client, ()):
            raise OSError(errno.EINVAL, f"volume {name} is whole, or another makes it")
        await self._manager.finish(name)
        self._made_by[client].discard(uuid)
        return self._manager.stat(name)

    def release(self, client: Client) -> None:
        """It has gone."""
        for uuid in self._made_by.pop(client, ()):
            if (name := self._manager.name_of(uuid)) is not None:
                log.warning("%s has gone: volume %s, which it had not finished, goes as well", client.words, name)
                Job(self._remove(name, uuid), _removed).start()

    async def _remove(self, name: str, uuid: str) -> None:
        try:
            await self._manager.remove(name, force=True, uuid=uuid)
        except OSError as error:
            if error.errno == errno.ENOENT:
                return
            if error.errno == errno.EBUSY:  # it must not vanish under who holds it, nor at the next start
                await self._manager.finish(name)
            raise


def _removed(_value: object, error: BaseException | None) -> None:
    if error is not None:
        log.error("a volume that was not finished stays: %s", error, exc_info=not isinstance(error, OSError))
