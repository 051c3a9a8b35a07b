"""Snapshots as disks: those that a configuration or an option names, VOLUME@SNAPSHOT.

The volume server lists its volumes and not their snapshots, which may be many: each that is wanted is asked for when
the server is there, and then its events say that it has come or gone. A disk of a snapshot is read-only and has an
identity of its own; all else of it is as of any volume's.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterable
from functools import partial

from iscsi_ovs.targets.core import Core
from iscsi_ovs.targets.disks import Disks
from iscsi_ovs.targets.holdings import countdown
from shm_server.abi import control, names

logger = logging.getLogger("iscsi_ovs.target")


class Snapshots:
    """Those that are wanted, and those of them that are disks."""

    def __init__(self, core: Core, disks: Disks) -> None:
        self._core = core
        self._disks = disks
        self._wanted: frozenset[str] = frozenset()

    def want(self, volumes: Iterable[str]) -> None:
        """Of these volumes those that are snapshots are to be disks as soon as they are there, and no others."""
        before, self._wanted = self._wanted, frozenset(filter(names.is_snapshot, volumes))
        for disk in self._disks:
            if disk.name in before - self._wanted:
                self._disks.withdraw(disk, "it is not configured any more")
        if self._core.service.is_attached:
            for name in sorted(self._wanted - before):
                self._ask(name, _nothing)

    def is_wanted(self, name: str) -> bool:
        """Is there to be a disk of that name? Of a volume always."""
        return not names.is_snapshot(name) or name in self._wanted

    def look(self, done: Callable[[], None]) -> None:
        """The volume server is there (again); ``done`` when it has told of all that are wanted."""
        if not self._wanted:
            done()
            return
        one_told = countdown(len(self._wanted), done)
        for name in sorted(self._wanted):
            self._ask(name, one_told)

    def _ask(self, name: str, done: Callable[[], None]) -> None:
        self._core.service.stat(name, partial(self._told, name, done))
        self._core.follow_control()

    def _told(self, name: str, done: Callable[[], None], answer: control.VolumeInfo | OSError) -> None:
        disk = self._disks.named(name)
        if isinstance(answer, OSError):
            if answer.errno == errno.ENOENT:
                if disk is not None:
                    self._disks.withdraw(disk, "it is not there any more")
                logger.warning("%s: %s; it is served when it is there", name, answer.strerror)
        elif name in self._wanted:
            self._disks.serve(answer)
        done()

    def gone_with(self, volume: str, reason: str = "its volume was removed") -> None:
        """A volume was removed, and every snapshot with it."""
        for disk in self._disks:
            if names.is_snapshot(disk.name) and names.split(disk.name)[0] == volume:
                self._disks.withdraw(disk, reason)

    def renamed(self, old_name: str, name: str) -> None:
        """A volume has another name, and so have its snapshots."""
        self.gone_with(old_name, f"its volume is called {name} now")
        for wanted in sorted(self._wanted):
            if names.split(wanted)[0] == name:
                self._ask(wanted, _nothing)


def _nothing() -> None:
    """Nobody waits."""
