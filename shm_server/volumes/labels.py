"""What is kept with a snapshot for whoever made it: labels, which are words by key, and metadata, which is opaque.

The two share one limit, the 4096 bytes that Open vStorage gave its snapshots' metadata. They stand in the catalogue in
the snapshot's row, so they are as durable as its name.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Mapping

from shm_server.abi.control import MAX_LABELS_BYTES

MAX_LABELS = 64  # so that a message of many snapshots is not mostly the lengths of words
KEY_RULE = "[A-Za-z0-9][A-Za-z0-9._/-]{0,62}"


def check(labels: Mapping[str, str], metadata: bytes) -> None:
    """EINVAL: a key or value that can't be; E2BIG: too much of it."""
    for key, value in labels.items():
        if not re.fullmatch(KEY_RULE, key):
            raise OSError(errno.EINVAL, f"{key!r} is no key of a label: {KEY_RULE}")
        if not value.isprintable():
            raise OSError(errno.EINVAL, f"label {key}: its value is no line of printable characters")
    if len(labels) > MAX_LABELS:
        raise OSError(errno.E2BIG, f"{len(labels)} labels: a snapshot has at most {MAX_LABELS}")
    size = len(metadata) + sum(len(key.encode()) + len(value.encode()) for key, value in labels.items())
    if size > MAX_LABELS_BYTES:
        raise OSError(
            errno.E2BIG, f"labels and metadata of {size} bytes: a snapshot has at most {MAX_LABELS_BYTES} of them"
        )


def changed(labels: Mapping[str, str], changes: Mapping[str, str | None]) -> dict[str, str]:
    """None takes a label away."""
    merged = {**labels, **changes}
    return {key: value for key, value in merged.items() if value is not None}


def encode(labels: Mapping[str, str]) -> str:
    """As it stands in the catalogue."""
    return json.dumps(dict(labels), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def decode(text: str) -> dict[str, str]:
    found: dict[str, str] = json.loads(text)
    return found
