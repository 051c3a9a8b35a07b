"""A run of commands taken at once (session.plain) is what it is one by one: answers, disk, window, slots."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi_ovs import pdu
from iscsi_ovs.session import plain
from iscsi_ovs.testing.initiator import encode
from tests.session.conversation import BLOCK, Conversation, read_cdb, write_cdb

PLAIN = st.fixed_dictionaries({"kind": st.sampled_from(["read", "write"]), "blocks": st.integers(1, 24)})
# What may be odd about a command, one thing each; most keep the general path busy.
ODD = st.sampled_from(
    [
        {"opcode": 0x41},
        {"flags": pdu.FINAL | pdu.READ | pdu.WRITE},
        {"flags": pdu.FINAL | pdu.WRITE | pdu.ATTRIBUTE_ORDERED},
        {"flags": pdu.WRITE},
        {"flags": pdu.FINAL},
        {"initiator_task_tag": pdu.RESERVED_TAG},
        {"ahead": 1},
        {"ahead": -1},
        {"short": 1},
        {"short": BLOCK},
        {"expected": 0},
        {"ahs": b"\x00\x05\x01\x00" + bytes(4)},
        {"same_tag": True},
        {"nop": True},
    ]
)
COMMAND = st.one_of(PLAIN, PLAIN, PLAIN, st.tuples(PLAIN, ODD).map(lambda both: {**both[0], **both[1]}))


def pdu_of(number: int, cmd_sn: int, command: dict[str, Any]) -> bytes:
    """One PDU; ``number`` makes tag, place and payload."""
    if command.get("nop"):
        return encode(pdu.NopOut(opcode=0x40, initiator_task_tag=1000 + number, cmd_sn=cmd_sn), b"ping")
    is_write, blocks = command["kind"] == "write", command["blocks"]
    length = blocks * BLOCK
    data = bytes([number % 251 + 1]) * (length - command.get("short", 0)) if is_write else b""
    header = pdu.ScsiCommand(
        opcode=command.get("opcode", pdu.ScsiCommand.OPCODE),
        flags=command.get("flags", pdu.FINAL | (pdu.WRITE if is_write else pdu.READ)),
        lun=0,
        initiator_task_tag=command.get("initiator_task_tag", 3 if command.get("same_tag") else number),
        expected_data_transfer_length=command.get("expected", length),
        cmd_sn=cmd_sn + command.get("ahead", 0),
        cdb=(write_cdb if is_write else read_cdb)(number * 64, blocks).ljust(16, b"\0"),
    )
    return encode(header, data, command.get("ahs", b""))


def play(script: list[dict[str, Any]], slots: int) -> tuple[Any, ...]:
    """What a session shows after the script: sent bytes, disk, window, slots, log."""
    conversation = Conversation(slots)
    conversation.initiator.login("iqn.2016-01.com.openvstorage:demo")
    conversation.run()
    session = conversation.session
    assert session is not None
    conversation.executes_at_once = False
    sent: list[bytes] = []
    for at in range(0, len(script), 7):
        cmd_sn = session.window.exp_cmd_sn
        stream = b""
        for number, command in enumerate(script[at : at + 7], at):
            stream += pdu_of(number, cmd_sn, command)
            if not (command.get("opcode", 0) & pdu.IMMEDIATE or command.get("nop")):
                cmd_sn += 1
        conversation.to_target(stream)
        while conversation.commands:
            conversation.execute()
        pieces = conversation.connection.data_to_send()
        sent.append(b"".join(bytes(piece) for piece in pieces))
        conversation.connection.sent(len(sent[-1]))
    window, pool = session.window, conversation.space.pool
    assert pool is not None
    numbers = window.exp_cmd_sn, window.max_cmd_sn, window.taken, window.places, pool.free_slots, pool.reserved_slots
    return sent, bytes(conversation.disk[: 512 << 10]), numbers, conversation.connection.state, conversation.log


def one_by_one(monkeypatch: pytest.MonkeyPatch, act: Callable[[], Any]) -> Any:
    with monkeypatch.context() as patched:
        patched.setattr(plain, "take", lambda session, scratch, start, end: (start, 0))
        return act()


@given(script=st.lists(COMMAND, min_size=1, max_size=25), slots=st.sampled_from([2, 16, 40, 256]))
@settings(max_examples=150, deadline=None)
def test_in_a_run_as_one_by_one(script: list[dict[str, Any]], slots: int) -> None:
    """Whatever comes, and however scarce slots are: the same answers, byte for byte, and the same state."""
    in_a_run = play(script, slots)
    assert one_by_one(pytest.MonkeyPatch(), lambda: play(script, slots)) == in_a_run


@pytest.mark.parametrize("kind", ["read", "write"])
def test_a_run_is_taken(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain commands do go this way: none of a run reaches the general path."""
    taken: list[int] = []
    take = plain.take

    def counted(session: Any, scratch: memoryview, start: int, end: int) -> tuple[int, int]:
        before = session.window.taken
        result = take(session, scratch, start, end)
        taken.append(session.window.taken - before)
        return result

    monkeypatch.setattr(plain, "take", counted)
    play([{"kind": kind, "blocks": 1}] * 7, 256)
    assert sum(taken) == 7
