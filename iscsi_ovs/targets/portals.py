"""Portals: where this process listens, in groups with a tag each, and which addresses initiators are told
(RFC 7143 sections 4.1 and 4.4.2).

Without a configuration there is one group, with every portal that was opened.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace

from iscsi_ovs.config import sections
from iscsi_ovs.config.configuration import Portal, PortalGroup
from iscsi_ovs.net import portal
from iscsi_ovs.net.portal import Address
from iscsi_ovs.targets.core import Core

logger = logging.getLogger("iscsi_ovs.target")


class Portals:
    """The portal groups of this process, by name."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.groups: dict[str, PortalGroup] = {}
        self._real: dict[Address, Address] = {}  # where a portal is wanted → where it is (port 0 is no port)

    @property
    def addresses(self) -> list[Address]:
        """Where connections are accepted, in the order in which it was asked for."""
        return list(self._real.values())

    def add(self, address: Address, inherited_fd: int | None = None) -> None:
        """One more portal in the only group that there is without a configuration."""
        real = self._core.driver.listen(address, inherited_fd)
        self._real[real] = real
        name = sections.DEFAULT_PORTAL_GROUP
        group = self.groups.get(name) or PortalGroup(name, 1, ())
        portals = (*group.portals, Portal(real, self._core.settings.advertise))
        self.groups[name] = replace(group, portals=portals)

    def configure(self, groups: Mapping[str, PortalGroup]) -> list[str]:
        """These groups from now on: listen where it is new, no more where it is gone. Returns that, for people.

        Raises ConfigurationError where an address can't be had; then all is as before.
        """
        wanted = [at.listen for group in groups.values() for at in group.portals]
        gone = {address: real for address, real in self._real.items() if address not in wanted}
        new = [address for address in wanted if address not in self._real]
        # 0.0.0.0:3260 stands in the way of 127.0.0.1:3260: what goes gives way to what comes.
        in_the_way = [address for address in gone if any(address.port == other.port for other in new)]
        for address in in_the_way:
            self._core.driver.unlisten(gone[address])
        opened: dict[Address, Address] = {}
        try:
            for address in new:
                opened[address] = self._core.driver.listen(address)
        except Exception:
            for real in opened.values():
                self._core.driver.unlisten(real)
            for address in in_the_way:
                self._core.driver.listen(gone[address])
            raise
        for address, real in gone.items():
            if address not in in_the_way:
                self._core.driver.unlisten(real)
            del self._real[address]
        self._real |= opened
        self.groups = dict(groups)
        removed = [f"portal {real} removed" for real in gone.values()]
        return removed + [f"portal {real} added" for real in opened.values()]

    def group_at(self, at: Address) -> PortalGroup | None:
        """The group of the portal where a connection came in."""
        for group in self.groups.values():
            if any(self._real.get(found.listen) == at for found in group.portals):
                return group
        return None

    def first_of(self, names: Iterable[str]) -> Address:
        """An address of these groups, for people."""
        group = self.groups[next(iter(names))]
        found = group.portals[0]
        return found.advertise or self._real.get(found.listen, found.listen)

    def told(self, names: Iterable[str], at: Address, local: Address) -> list[str]:
        """TargetAddress values for portal groups, for an initiator that reached us at a portal, as ``local``.

        Nobody elsewhere is told of loopback, and a portal that listens everywhere is where the initiator reached us.
        """
        found: list[str] = []
        for group in [self.groups[name] for name in names if name in self.groups]:
            for each in group.portals:
                real = self._real.get(each.listen)
                if each.advertise is not None:
                    address = each.advertise
                elif real == at:
                    address = local
                elif real is None or (portal.is_loopback(real) and not portal.is_loopback(local)):
                    continue
                else:
                    is_everywhere = real.host in portal.WILDCARDS
                    if is_everywhere and real.host == "0.0.0.0" and ":" in local.host:
                        continue  # it is not to be had by IPv6
                    address = Address(local.host, real.port) if is_everywhere else real
                found.append(f"{address},{group.tag}")
        return list(dict.fromkeys(found))
