"""Configuration files for tests: small, private, and whole unless a line of them is changed."""

from __future__ import annotations

from pathlib import Path

from iscsi_ovs.config import resolving
from iscsi_ovs.config.configuration import Configuration

WHOLE = """\
iqn-prefix = "iqn.2024-05.com.example"

[portal-group.inner]
listen = ["127.0.0.1:3260", "[::1]:3260"]

[portal-group.outer]
tag = 7
listen = ["0.0.0.0:3261"]
advertise = ["203.0.113.7:3260"]
discovery-auth-group = "lab"

[auth-group.lab]
[[auth-group.lab.chap]]
user = "alice"
secret = "alice's long secret"
[auth-group.lab.mutual]
user = "target"
secret = "our own long secret"

[acl.lab]
initiators = ["iqn.1993-08.org.debian:*", "iqn.2020-01.com.example:Host"]
networks = ["192.0.2.0/24", "::1/128"]

[lun.disk]
block-size = 4096
[lun.more]
volume = "b"

[target.disk]
portal-group = ["inner", "outer"]
auth-group = "lab"
acl = "lab"
lun.0 = "disk"
lun.1 = { lun = "more", read-only = true }
[[target.disk.map]]
initiators = ["iqn.1993-08.org.debian:01:x"]
lun.5 = "more"
"""

# The least that there is.
LEAST = """\
[lun.demo]
[target.demo]
lun.0 = "demo"
"""


def write(directory: Path, text: str, mode: int = 0o600) -> Path:
    path = directory / "config.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def load(directory: Path, text: str, *, is_open: bool = False) -> Configuration:
    return resolving.load(write(directory, text), is_open=is_open)


def changed(old: str, new: str, text: str = WHOLE) -> str:
    """A file with one thing in it changed."""
    assert text.count(old) == 1, f"{text.count(old)} times: {old}"
    return text.replace(old, new)
