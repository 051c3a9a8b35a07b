"""What all control messages have in common, and how much may be in one."""

from __future__ import annotations

import msgspec

MAX_REQUEST_BYTES = 1 << 20
MAX_ANSWER_BYTES = 8 << 20
MAX_RECORD_BYTES = 64 << 10
MAX_SNAPSHOTS = 1500  # in one message
MAX_LABELS_BYTES = 4096  # keys and values of a snapshot's labels, and its metadata, all together
ATTACH_DESCRIPTORS = 4


class Message(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag=True):
    """Every message is one of these; the tag is the class's name."""
