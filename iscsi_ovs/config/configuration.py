"""What a target process is to serve, with every name resolved.

These are values: two configurations can be compared, and the difference applied. ``resolving`` makes them from a file;
no secret is part of their repr (login.policy.Policy sees to that).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from iscsi_ovs import scsi
from iscsi_ovs.login import policy
from iscsi_ovs.login.policy import Policy
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session.liveness import Timing

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


@dataclass(frozen=True, slots=True)
class Portal:
    """An address to listen on; ``advertise`` is told to initiators instead."""

    listen: Address
    advertise: Address | None = None


@dataclass(frozen=True, slots=True)
class PortalGroup:
    """Portals with one tag: a target port group. ``discovery`` None: nobody may discover here."""

    name: str
    tag: int
    portals: tuple[Portal, ...]
    redirect: Address | None = None
    discovery: Policy | None = policy.OPEN
    access: scsi.AccessState = scsi.AccessState.ACTIVE_OPTIMIZED
    is_preferred: bool = False


@dataclass(frozen=True, slots=True)
class Access:
    """Which initiators are let through; no names, or no networks: all."""

    initiators: tuple[str, ...] = ()
    networks: tuple[Network, ...] = ()
    allows_target_reset: bool = True

    def allows(self, initiator_name: str, host: str) -> bool:
        """By its name and by its address: both must be allowed."""
        if self.initiators and not is_among(initiator_name, self.initiators):
            return False
        if not self.networks:
            return True
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        return any(address in network for network in self.networks)

    @property
    def is_open(self) -> bool:
        """It keeps nobody out, however it says so."""
        any_name = not self.initiators or "*" in self.initiators
        return any_name and (not self.networks or any(network.prefixlen == 0 for network in self.networks))


EVERYBODY = Access()


def is_among(initiator_name: str, patterns: Iterable[str]) -> bool:
    """A name is given whole, or by how it begins, with ``*`` at the end. Case does not count."""
    name = initiator_name.lower()
    return any(name.startswith(pattern[:-1]) if pattern.endswith("*") else name == pattern for pattern in patterns)


@dataclass(frozen=True, slots=True)
class Lun:
    """A volume, and the kind of disk that it is."""

    volume: str
    personality: scsi.Personality = field(default_factory=scsi.Personality)
    is_read_only: bool = False  # where it is mapped; the personality says what holds everywhere


@dataclass(frozen=True, slots=True)
class LunMap:
    """LUNs by number. ``initiators`` empty: for whoever no other map of the target is."""

    luns: Mapping[int, Lun]
    initiators: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Target:
    """An iSCSI name. ``policy`` None: nobody gets in. The last of ``maps`` is for everybody."""

    iqn: str
    groups: tuple[str, ...]  # names of portal groups
    maps: tuple[LunMap, ...]
    policy: Policy | None = policy.OPEN
    access: Access = EVERYBODY
    redirect: Address | None = None
    may_set_access: bool = False  # its initiators, by SET TARGET PORT GROUPS

    @property
    def is_guarded(self) -> bool:
        """Not everybody gets in."""
        is_proved = self.policy is None or policy.NONE not in self.policy.methods
        return is_proved or not self.access.is_open or self.redirect is not None


@dataclass(frozen=True, slots=True)
class Configuration:
    """All of it. ``warnings`` are for the log."""

    path: Path
    groups: Mapping[str, PortalGroup]
    targets: Mapping[str, Target]  # by IQN
    timing: Timing = field(default_factory=Timing)
    max_sessions: int = 4096
    warnings: tuple[str, ...] = ()

    @property
    def volumes(self) -> set[str]:
        """Every volume and snapshot that is mapped somewhere."""
        maps = (lun_map for target in self.targets.values() for lun_map in target.maps)
        return {lun.volume for lun_map in maps for lun in lun_map.luns.values()}
