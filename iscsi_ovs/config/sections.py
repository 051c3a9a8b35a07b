"""The grammar of config.toml: one class a table, with its keys, their types and their defaults (docs/CONFIG.md).

The nouns are those of FreeBSD's ctl.conf: portal-group, auth-group, target, lun; and acl. What a value means, and
whether what it refers to is there, is decided in ``configuration``.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

Seconds = Annotated[float, Meta(gt=0, le=86400)]
Algorithm = Literal["SHA3-256", "SHA-256", "SHA-1", "MD5"]

DEFAULT_IQN_PREFIX = "iqn.2016-01.com.openvstorage"
DEFAULT_PORTAL = "127.0.0.1:3260"
DEFAULT_PORTAL_GROUP = "default"
NO_AUTHENTICATION = "no-authentication"
NO_ACCESS = "no-access"


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, rename="kebab"):
    """A table of the file."""


class Session(Section, frozen=True):
    """``[session]``: what holds for every connection."""

    login_timeout: Seconds = 15.0
    nop_interval: Annotated[float, Meta(ge=0, le=86400)] = 30.0
    nop_timeout: Seconds = 30.0
    task_management_timeout: Seconds = 10.0
    logout_timeout: Seconds = 10.0
    transfer_timeout: Seconds = 30.0
    stall_timeout: Seconds = 60.0
    max_sessions: Annotated[int, Meta(ge=1, le=4096)] = 4096  # net.driver has no more connections


class PortalGroup(Section, frozen=True):
    """``[portal-group.NAME]``: addresses to listen on, under one tag; and how good a way to the disks they are."""

    listen: list[str] = msgspec.field(default_factory=lambda: [DEFAULT_PORTAL])
    tag: Annotated[int, Meta(ge=1, le=65535)] | None = None
    advertise: list[str] = []
    redirect: str | None = None
    access: Literal["optimized", "non-optimized", "standby", "unavailable"] = "optimized"
    preferred: bool = False
    discovery_auth_group: str = NO_AUTHENTICATION


class Chap(Section, frozen=True):
    """``[[auth-group.NAME.chap]]``: an account, or what we prove ourselves with."""

    user: Annotated[str, Meta(min_length=1, max_length=255, pattern=r"^[^\x00-\x1f\x7f]+$")]  # it goes into a text
    secret: str | None = None
    secret_file: str | None = None

    def __repr__(self) -> str:
        return f"Chap(user={self.user!r})"


class AuthGroup(Section, frozen=True):
    """``[auth-group.NAME]``: who may log in by CHAP."""

    chap: list[Chap] = []
    mutual: Chap | None = None
    algorithms: Annotated[list[Algorithm], Meta(min_length=1)] = msgspec.field(
        default_factory=lambda: ["SHA3-256", "SHA-256", "SHA-1", "MD5"]
    )
    minimum_algorithm: Algorithm = "MD5"
    short_secrets: Literal["refuse", "warn"] = "refuse"


class Acl(Section, frozen=True):
    """``[acl.NAME]``: initiators, by name and by address. An empty list lets all through."""

    initiators: list[str] = []
    networks: list[str] = []
    target_reset: bool = True


class Lun(Section, frozen=True):
    """``[lun.NAME]``: a volume, and the kind of disk that it is to be."""

    volume: str | None = None
    thin: bool = True
    block_size: Literal[512, 4096] = 512
    physical_block_size: Literal[512, 4096] = 4096
    read_only: bool = False
    removable: bool = False
    vendor: Annotated[str, Meta(min_length=1, max_length=8, pattern=r"^[ -~]*$")] = "OVS"
    product: Annotated[str, Meta(min_length=1, max_length=16, pattern=r"^[ -~]*$")] = "SHM VOLUME"
    revision: Annotated[str, Meta(min_length=1, max_length=4, pattern=r"^[ -~]*$")] = "0001"
    serial: Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[!-~]*$")] | None = None
    naa: Annotated[str, Meta(pattern=r"^([0-9a-fA-F]{16}|[0-9a-fA-F]{32})$")] | None = None
    write_cache: bool = True
    rotation_rate: Annotated[int, Meta(ge=0, le=0xFFFE)] = 1


class Mapping(Section, frozen=True):
    """What stands under a LUN number, where more than the LUN's name is to be said."""

    lun: str
    read_only: bool = False


class Map(Section, frozen=True):
    """``[[target.NAME.map]]``: what these initiators see instead of the target's own LUNs."""

    initiators: Annotated[list[str], Meta(min_length=1)]
    lun: dict[str, str | Mapping]


class Target(Section, frozen=True):
    """``[target.NAME]``: an iSCSI name, where it is reached, by whom, and its LUNs."""

    portal_group: str | list[str] | None = None
    auth_group: str = NO_AUTHENTICATION
    acl: str | None = None
    redirect: str | None = None
    explicit_alua: bool = False  # initiators may change the access states of its port groups
    lun: dict[str, str | Mapping] = {}
    map: list[Map] = []


class Root(Section, frozen=True):
    """The file."""

    iqn_prefix: str = DEFAULT_IQN_PREFIX
    open: bool = False
    session: Session = Session()
    portal_group: dict[str, PortalGroup] = {}
    auth_group: dict[str, AuthGroup] = {}
    acl: dict[str, Acl] = {}
    lun: dict[str, Lun] = {}
    target: dict[str, Target] = {}
