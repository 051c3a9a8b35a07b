"""Where a target will be reached: what options and a configuration file say of it, checked before anything is begun."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from iscsi_ovs.errors import ConfigurationError

if TYPE_CHECKING:
    from iscsi_ovs.net.portal import Address

DEFAULT_PORTAL = "127.0.0.1:3260"


def portals_of(config_file: Path | None, options: Sequence[str], advertise: str | None, is_open: bool) -> list[Address]:
    """Where it will be reached, one portal of each group; what can't be obeyed is refused before anything is begun."""
    from iscsi_ovs.net import portal

    if config_file is not None:
        from iscsi_ovs.config import resolving

        if options or advertise is not None:
            raise ConfigurationError("with --config portals and what is advertised stand in the file")
        groups = resolving.load(config_file, is_open=is_open).groups.values()
        return [group.portals[0].advertise or group.portals[0].listen for group in groups]
    parse_advertised(advertise)
    addresses = [portal.parse(text) for text in options or [DEFAULT_PORTAL]]
    exposed = [address for address in addresses if not portal.is_loopback(address)]
    if exposed and not is_open:
        raise ConfigurationError(
            f"portal {exposed[0]} is beyond loopback: whoever reaches it may log in to every volume. "
            "Say --open if that is meant, or use --config with CHAP or an ACL"
        )
    return addresses


def parse_advertised(text: str | None) -> Address | None:
    from iscsi_ovs.net import portal

    if text is None:
        return None
    address = portal.parse(text)
    if address.port == 0:
        raise ConfigurationError(f"--advertise {text!r}: an initiator can't connect to port 0")
    return address
