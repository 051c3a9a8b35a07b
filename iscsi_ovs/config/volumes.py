"""Volumes and snapshots as options name them."""

from __future__ import annotations

import re

from iscsi_ovs.config.sizes import parse_size
from iscsi_ovs.errors import ConfigurationError
from shm_server.abi import names

_IN_AN_ISCSI_NAME = re.compile(r"[a-z0-9.:-]+")  # RFC 7143 section 4.2.7, of what a snapshot's name can have


def parse_volume_option(text: str) -> tuple[str, int]:
    """``NAME=SIZE`` of --volume."""
    name, equals, size = text.partition("=")
    if not equals or not name:
        raise ConfigurationError(f"--volume {text!r}: write NAME=SIZE, for instance demo=10G, or VOLUME@SNAPSHOT")
    check_name(name)
    return name, parse_size(size)


def parse_snapshot_option(text: str) -> str:
    """``VOLUME@SNAPSHOT`` of --volume: a target, whose iSCSI name it must fit into."""
    check_name(text)
    snapshot = names.split(text)[1]
    if not _IN_AN_ISCSI_NAME.fullmatch(snapshot):
        raise ConfigurationError(
            f"{text}: an iSCSI name has no upper case and no '_'; give that snapshot a target in a config.toml"
        )
    return text


def check_name(text: str) -> None:
    """A volume's, or VOLUME@SNAPSHOT. Raises ConfigurationError."""
    volume, snapshot = names.split(text)
    if not re.fullmatch(names.VOLUME_RULE, volume):
        raise ConfigurationError(
            f"{volume!r} is no name of a volume: a to z, 0 to 9, '.' and '-', at most 63, none of both first"
        )
    if names.is_snapshot(text) and not re.fullmatch(names.SNAPSHOT_RULE, snapshot):
        raise ConfigurationError(f"{snapshot!r} is no name of a snapshot: {names.SNAPSHOT_RULE}")
