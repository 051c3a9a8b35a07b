"""Sections → a Configuration: names are resolved, what contradicts itself is refused with its place."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from iscsi_ovs import scsi
from iscsi_ovs.config import reading, sections
from iscsi_ovs.config.configuration import (
    EVERYBODY,
    Access,
    Configuration,
    Lun,
    LunMap,
    Network,
    Portal,
    PortalGroup,
    Target,
)
from iscsi_ovs.config.reading import Place
from iscsi_ovs.config.secrets import secret_of
from iscsi_ovs.config.volumes import check_name
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.login import policy
from iscsi_ovs.login.keys import is_iscsi_name
from iscsi_ovs.login.policy import Policy
from iscsi_ovs.net import portal
from iscsi_ovs.net.portal import Address
from iscsi_ovs.session.liveness import Timing
from shm_server.abi import names as volume_names

_ACCESS_STATES = {
    "optimized": scsi.AccessState.ACTIVE_OPTIMIZED,
    "non-optimized": scsi.AccessState.ACTIVE_NON_OPTIMIZED,
    "standby": scsi.AccessState.STANDBY,
    "unavailable": scsi.AccessState.UNAVAILABLE,
}
_ALGORITHMS = {
    "SHA3-256": policy.SHA3_256,
    "SHA-256": policy.SHA_256,
    "SHA-1": policy.SHA_1,
    "MD5": policy.MD5,
}
_LUN_NUMBER = re.compile(r"0|[1-9][0-9]{0,4}")
_ISCSI_NAME_KINDS = ("iqn.", "eui.", "naa.")


def load(path: Path, *, is_open: bool = False) -> Configuration:
    """The configuration in a file. Raises ConfigurationError.

    ``is_open``: the operator has said that portals beyond loopback may be without CHAP and ACL.
    """
    path = path.absolute()
    return _Resolver(reading.read(path), Place(path)).configuration(is_open)


class _Resolver:
    """One pass over one file."""

    def __init__(self, root: sections.Root, place: Place) -> None:
        self._root = root
        self._place = place
        self._warnings: list[str] = []

    def configuration(self, is_open: bool) -> Configuration:
        root = self._root
        policies: dict[str, Policy | None] = {name: self._policy(name) for name in root.auth_group}
        policies |= {sections.NO_AUTHENTICATION: policy.OPEN, sections.NO_ACCESS: None}
        self._check_directions({name: found for name, found in policies.items() if found is not None})
        groups = self._groups(policies)
        luns = self._luns()
        accesses = {name: self._access(acl, self._place / "acl" / name) for name, acl in root.acl.items()}
        targets: dict[str, Target] = {}
        for name, section in root.target.items():
            place = self._place / "target" / name
            target = self._target(name, section, place, groups, policies, accesses, luns)
            if target.iqn in targets:
                raise place.error(f"{target.iqn} stands there twice")
            targets[target.iqn] = target
        if not targets:
            raise self._place.error("there is no [target.NAME]")
        self._check_exposure(groups, targets, is_open or root.open)
        limit = root.session.max_sessions
        return Configuration(self._place.file, groups, targets, _timing(root.session), limit, tuple(self._warnings))

    # Authentication --------------------------------------------------------------------------------------------

    def _policy(self, name: str) -> Policy:
        group = self._root.auth_group[name]
        place = self._place / "auth-group" / name
        if name in (sections.NO_AUTHENTICATION, sections.NO_ACCESS):
            raise place.error("this name has its meaning already")
        if not group.chap:
            raise place.error(f"there is no account in it; {sections.NO_AUTHENTICATION!r} lets everybody in")
        accounts: dict[str, bytes] = {}
        for number, chap in enumerate(group.chap):
            where = (place / "chap")[number]
            if chap.user in accounts:
                raise where.error(f"user {chap.user!r} stands there twice")
            accounts[chap.user] = secret_of(chap, group, where, self._warnings)
        least = list(_ALGORITHMS).index(group.minimum_algorithm)
        algorithms = [name for name in group.algorithms if list(_ALGORITHMS).index(name) <= least]
        if not algorithms:
            raise (place / "algorithms").error(f"none of them is {group.minimum_algorithm} or stronger")
        mutual = group.mutual
        return Policy(
            methods=(policy.CHAP,),
            algorithms=tuple(_ALGORITHMS[name] for name in dict.fromkeys(algorithms)),
            accounts=accounts,
            mutual_name=mutual.user if mutual is not None else None,
            mutual_secret=secret_of(mutual, group, place / "mutual", self._warnings) if mutual is not None else None,
        )

    def _check_directions(self, policies: Mapping[str, Policy]) -> None:
        """Section 9.2.1: "… the same secret … MUST NOT be used for authentication in both directions"."""
        theirs = {secret: (name, user) for name, found in policies.items() for user, secret in found.accounts.items()}
        for name, found in policies.items():
            if found.mutual_secret is not None and found.mutual_secret in theirs:
                group, user = theirs[found.mutual_secret]
                raise (self._place / "auth-group" / name / "mutual").error(
                    f"its secret is that of user {user!r} of auth-group {group!r}, too: each direction needs its own"
                )

    # Portal groups and ACLs ------------------------------------------------------------------------------------

    def _groups(self, policies: Mapping[str, Policy | None]) -> dict[str, PortalGroup]:
        found = self._root.portal_group or {sections.DEFAULT_PORTAL_GROUP: sections.PortalGroup()}
        groups: dict[str, PortalGroup] = {}
        taken = {section.tag for section in found.values()}
        free_tags = (tag for tag in range(1, 65536) if tag not in taken)
        listens: dict[Address, str] = {}
        for name, section in found.items():
            place = self._place / "portal-group" / name
            tag = section.tag if section.tag is not None else next(free_tags)
            namesake = next((group.name for group in groups.values() if group.tag == tag), None)
            if namesake is not None:
                raise (place / "tag").error(f"portal-group {namesake!r} has tag {tag} already")
            if section.discovery_auth_group not in policies:
                raise (place / "discovery-auth-group").unknown("auth-group", section.discovery_auth_group, policies)
            portals = _portals(section, place)
            for at in portals:
                if at.listen in listens:
                    raise (place / "listen").error(f"portal-group {listens[at.listen]!r} has {at.listen} already")
                listens[at.listen] = name
            redirect = _destination(section.redirect, place / "redirect")
            discovery = policies[section.discovery_auth_group]
            access = _ACCESS_STATES[section.access]
            groups[name] = PortalGroup(name, tag, portals, redirect, discovery, access, section.preferred)
        return groups

    def _access(self, section: sections.Acl, place: Place) -> Access:
        networks: list[Network] = []
        for number, text in enumerate(section.networks):
            try:
                networks.append(ipaddress.ip_network(text))
            except ValueError as error:
                raise (place / "networks")[number].error(f"{error}") from None
        initiators = _initiators(section.initiators, place / "initiators")
        return Access(initiators, tuple(networks), section.target_reset)

    def _check_exposure(self, groups: Mapping[str, PortalGroup], targets: Mapping[str, Target], is_open: bool) -> None:
        """Beyond loopback nothing is open to everybody by mistake."""
        for target in targets.values():
            exposed = [at.listen for name in target.groups for at in groups[name].portals
                       if not portal.is_loopback(at.listen)]  # fmt: skip
            if not exposed or target.is_guarded:
                continue
            words = f"{target.iqn} is there for everybody who reaches {exposed[0]}, without CHAP or ACL"
            if not is_open:
                raise self._place.error(f"{words}; give it an auth-group or an acl, or say --open (or open = true)")
            self._warnings.append(words)

    # LUNs and targets ------------------------------------------------------------------------------------------

    def _luns(self) -> dict[str, Lun]:
        luns: dict[str, Lun] = {}
        by_volume: dict[str, str] = {}
        by_naa: dict[str, str] = {}
        for name, section in self._root.lun.items():
            place = self._place / "lun" / name
            volume = name if section.volume is None else section.volume
            try:
                check_name(volume)
            except ConfigurationError as error:
                raise (place / "volume").error(str(error)) from None
            if volume in by_volume:
                # One volume is one logical unit: what initiators share of it (reservations, mode pages) is one, too.
                raise place.error(f"volume {volume!r} is lun {by_volume[volume]!r} already; map that one")
            by_volume[volume] = name
            if section.naa is not None:
                naa = section.naa.lower()
                if naa in by_naa:
                    # Multipath takes two paths to one name for two paths to one disk.
                    raise (place / "naa").error(f"lun {by_naa[naa]!r} has that name already")
                by_naa[naa] = name
            luns[name] = Lun(volume, _personality(section, place, is_snapshot=volume_names.is_snapshot(volume)))
        return luns

    def _target(
        self,
        name: str,
        section: sections.Target,
        place: Place,
        groups: Mapping[str, PortalGroup],
        policies: Mapping[str, Policy | None],
        accesses: Mapping[str, Access],
        luns: Mapping[str, Lun],
    ) -> Target:
        if section.auth_group not in policies:
            raise (place / "auth-group").unknown("auth-group", section.auth_group, policies)
        if section.acl is not None and section.acl not in accesses:
            raise (place / "acl").unknown("acl", section.acl, accesses)
        maps = []
        named: set[str] = set()
        for number, own in enumerate(section.map):
            where = (place / "map")[number]
            initiators = _initiators(own.initiators, where / "initiators")
            if twice := named.intersection(initiators):
                raise (where / "initiators").error(f"{min(twice)} has a map already")
            named.update(initiators)
            maps.append(LunMap(_lun_map(own.lun, luns, where / "lun"), initiators))
        maps.append(LunMap(_lun_map(section.lun, luns, place / "lun")))
        if not any(found.luns for found in maps) and section.redirect is None:
            raise place.error("it has no LUN")
        return Target(
            iqn=self._iqn(name, place),
            groups=_groups_of(section, groups, place / "portal-group"),
            maps=tuple(maps),
            policy=policies[section.auth_group],
            access=EVERYBODY if section.acl is None else accesses[section.acl],
            redirect=_destination(section.redirect, place / "redirect"),
            may_set_access=section.explicit_alua,
        )

    def _iqn(self, name: str, place: Place) -> str:
        """A target's name is an iSCSI name, or what comes behind the prefix."""
        iqn = name if name.startswith(_ISCSI_NAME_KINDS) else f"{self._root.iqn_prefix}:{name}"
        if not is_iscsi_name(iqn) or iqn != iqn.lower() or "_" in iqn:
            raise place.error(f"{iqn!r} is no iSCSI name (RFC 7143 section 4.2.7): iqn.YYYY-MM.DOMAIN:NAME, lower case")
        return iqn


def _timing(section: sections.Session) -> Timing:
    return Timing(
        login_s=section.login_timeout,
        nop_interval_s=section.nop_interval,
        nop_timeout_s=section.nop_timeout,
        management_s=section.task_management_timeout,
        logout_s=section.logout_timeout,
        transfer_s=section.transfer_timeout,
        stall_s=section.stall_timeout,
    )


def _groups_of(section: sections.Target, groups: Mapping[str, PortalGroup], place: Place) -> tuple[str, ...]:
    wanted = section.portal_group
    if wanted is None:
        if sections.DEFAULT_PORTAL_GROUP not in groups and len(groups) > 1:
            raise place.error(f"which one? There are {', '.join(groups)}, and none is called 'default'")
        wanted = sections.DEFAULT_PORTAL_GROUP if sections.DEFAULT_PORTAL_GROUP in groups else next(iter(groups))
    names = [wanted] if isinstance(wanted, str) else wanted
    for name in names:
        if name not in groups:
            raise place.unknown("portal-group", name, groups)
    if not names:
        raise place.error("a target without a portal can't be reached")
    return tuple(dict.fromkeys(names))


def _lun_map(entries: Mapping[str, str | sections.Mapping], luns: Mapping[str, Lun], place: Place) -> dict[int, Lun]:
    found: dict[int, Lun] = {}
    for key, entry in entries.items():
        where = place / key
        if not _LUN_NUMBER.fullmatch(key) or int(key) > scsi.MAX_LUN_NUMBER:
            raise where.error(f"a LUN is a number from 0 to {scsi.MAX_LUN_NUMBER}")
        name, is_read_only = (entry, False) if isinstance(entry, str) else (entry.lun, entry.read_only)
        if name not in luns:
            raise where.unknown("lun", name, luns)
        lun = luns[name]
        if any(other.volume == lun.volume for other in found.values()):
            raise where.error(f"lun {name!r} stands there twice")
        found[int(key)] = Lun(lun.volume, lun.personality, is_read_only or lun.personality.is_read_only)
    return found


def _personality(section: sections.Lun, place: Place, *, is_snapshot: bool) -> scsi.Personality:
    try:
        return scsi.Personality(
            is_thin=section.thin,
            logical_block_bytes=section.block_size,
            physical_block_bytes=section.physical_block_size,
            is_read_only=section.read_only or is_snapshot,
            is_removable=section.removable,
            vendor=section.vendor,
            product=section.product,
            revision=section.revision,
            serial=section.serial,
            naa=None if section.naa is None else int(section.naa, 16),
            write_cache=section.write_cache,
            rotation_rate=section.rotation_rate,
        )
    except ValueError as error:
        raise place.error(str(error)) from None


def _portals(section: sections.PortalGroup, place: Place) -> tuple[Portal, ...]:
    listens = [_address(text, (place / "listen")[number]) for number, text in enumerate(section.listen)]
    if not listens:
        raise (place / "listen").error("a portal group has at least one address")
    advertised = [_destination(text, (place / "advertise")[number]) for number, text in enumerate(section.advertise)]
    if advertised and len(advertised) != len(listens):
        raise (place / "advertise").error("one address for each of 'listen' is expected, in the same order")
    return tuple(map(Portal, listens, advertised or [None] * len(listens)))


def _address(text: str, place: Place) -> Address:
    try:
        return portal.parse(text)
    except ConfigurationError as error:
        raise place.error(str(error)) from None


def _destination(text: str | None, place: Place) -> Address | None:
    """An address that an initiator is to connect to."""
    if text is None:
        return None
    address = _address(text, place)
    if address.port == 0 or address.host in portal.WILDCARDS:
        raise place.error(f"an initiator can't connect to {address}")
    return address


def _initiators(names: Iterable[str], place: Place) -> tuple[str, ...]:
    found = []
    for number, name in enumerate(names):
        if not name.endswith("*") and not is_iscsi_name(name):
            raise place[number].error(f"{name!r} is no iSCSI name; by how it begins: with '*' at the end")
        found.append(name.lower())
    return tuple(found)
