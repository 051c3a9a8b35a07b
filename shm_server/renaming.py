"""Another name for a volume, in one commit of the catalogue.

Its UUID, records, layers and snapshots are its own by other keys than the name, and its files keep theirs: the
catalogue says how they are called where that is not as the volume is. So nothing on disk but that commit is to be made
durable, and a crash finds the volume under the one name or the other.
"""

from __future__ import annotations

import errno
import logging
from dataclasses import replace

from shm_server.abi import names
from shm_server.abi.control import VolumeInfo
from shm_server.manager import Manager

log = logging.getLogger(__name__)


async def rename(manager: Manager, name: str, new_name: str) -> VolumeInfo:
    """Those who read it, or a snapshot of it, go on. ENOENT; EINVAL; EEXIST; EBUSY: somebody writes it, or it is being
    sanitized."""
    manager.check_name(new_name)
    if name == new_name:
        return manager.stat(name)
    first, second = sorted((names.split(name)[0], new_name))  # so that two that cross each other don't wait in a circle
    async with manager.locked(first), manager.locked(second):
        record = manager.record(name)
        if manager.has(new_name):
            raise OSError(errno.EEXIST, f"volume {new_name} exists")
        manager.check_not_sanitizing(name)
        await manager.check_unwritten(name)
        files = record.files if record.files != new_name else None
        await manager.take_name(name, replace(record, name=new_name, stem=files))
        log.info("volume %s is called %s now", name, new_name)
        return manager.stat(new_name)
