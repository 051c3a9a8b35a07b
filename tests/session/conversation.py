"""The protocol core and ``testing.initiator`` face to face: no socket, no clock, no volume server.

A Conversation carries bytes both ways, a piece at a time if asked, and executes commands on a disk of its own that is
simpler than SCSI: the first CDB byte says READ (0x28) or WRITE (0x2A) and bytes 2–5 the block, as in READ(10).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any

from iscsi_ovs import pdu, scsi
from iscsi_ovs.errors import LoginError
from iscsi_ovs.login.policy import OPEN, Policy
from iscsi_ovs.session import events
from iscsi_ovs.session.connection import Connection
from iscsi_ovs.session.liveness import Timing
from iscsi_ovs.session.session import Session
from iscsi_ovs.session.space import Space
from iscsi_ovs.storage.slots import SlotPool
from iscsi_ovs.testing.initiator import Initiator

TARGET = "iqn.2016-01.com.openvstorage:demo"
BLOCK = 512


def read_cdb(lba: int, blocks: int) -> bytes:
    return bytes((0x28, 0)) + lba.to_bytes(4, "big") + b"\0" + blocks.to_bytes(2, "big") + b"\0"


def write_cdb(lba: int, blocks: int) -> bytes:
    return b"\x2a" + read_cdb(lba, blocks)[1:]


class Conversation:
    """One connection, its initiator, and the owner of the connection."""

    def __init__(
        self, slots: int = 256, space: Space | None = None, timing: Timing | None = None, **identity: Any
    ) -> None:
        if space is None:
            space = Space()
            space.attach(SlotPool(memoryview(bytearray(slots * 65536)), 65536), [])
        self.space = space
        self.connection = Connection(self, 1, now=0.0, name="test", timing=timing)
        self.initiator = Initiator(**identity)
        self.session: Session | None = None
        self.commands: list[scsi.Command] = []  # reported, not yet executed
        self.told: list[events.Event] = []
        self.executes_at_once = True
        self.admits = True
        self.log: list[str] = []
        self.connection.on_log = self.log.append
        self.piece: int | None = None  # bytes a receive, None: as many as fit
        self.now = 0.0
        self.seen: list[Any] = []
        self.security = OPEN
        self.chance = random.Random(7143)

    @cached_property
    def disk(self) -> bytearray:
        return bytearray(16 << 20)

    # Surroundings of the connection

    def targets(self, connection: Connection) -> Sequence[tuple[str, Sequence[str]]]:
        return [(TARGET, ["127.0.0.1:3260,1"])]

    def check_session(self, request: pdu.LoginRequest) -> bool:
        return False

    def check_target(self, name: str) -> None:
        if name != TARGET:
            raise LoginError(2, 3, "no such target")

    def policy(self, initiator_name: str, target_name: str | None) -> Policy:
        return self.security

    def random_bytes(self, count: int) -> bytes:
        return self.chance.randbytes(count)

    def output_ready(self, connection: Connection) -> None:
        pass

    # Moving bytes

    def run(self) -> None:
        """Carry bytes until nobody has any."""
        while True:
            data = self.initiator.to_send()
            if data:
                self.to_target(data)
            moved = self.to_initiator()
            if not data and not moved:
                return

    def to_target(self, data: bytes) -> None:
        connection = self.connection
        while data and connection.wants_read:
            buffers = connection.receive_buffers()
            room = sum(map(len, buffers))
            count = min(room, len(data), self.piece or room)
            at = 0
            for buffer in buffers:
                piece = min(len(buffer), count - at)
                buffer[:piece] = data[at : at + piece]
                at += piece
            data = data[count:]
            self.happened(connection.received(count, self.now))

    def to_initiator(self) -> bool:
        pieces = self.connection.data_to_send()
        sent = b"".join(bytes(piece) for piece in pieces)
        if not sent:
            return False
        self.connection.sent(len(sent))
        self.seen += self.initiator.feed(sent)
        self.space.serve()
        return True

    # The owner

    def happened(self, told: list[events.Event]) -> None:
        for event in told:
            if isinstance(event, scsi.Command):
                self.commands.append(event)
                if self.executes_at_once:
                    self.execute()
            else:
                self.told.append(event)
                if isinstance(event, events.LoginOpened) and self.admits:
                    parameters = event.parameters
                    nexus = scsi.Nexus(parameters.initiator_name, parameters.isid, TARGET, 1)
                    self.session, more = self.connection.admit(nexus, 7, self.now)
                    self.happened(more)

    def execute(self, index: int = 0) -> None:
        """Execute the oldest reported command, or another."""
        command = self.commands.pop(index)
        self.complete(command, self.outcome(command))

    def complete(self, command: scsi.Command, outcome: scsi.Outcome) -> None:
        command.context.session.complete(command, outcome)
        self.space.serve()

    def outcome(self, command: scsi.Command) -> scsi.Outcome:
        lba = int.from_bytes(command.cdb[2:6], "big") * BLOCK
        length = int.from_bytes(command.cdb[7:9], "big") * BLOCK
        if command.cdb[0] == 0x28:
            wanted = min(length, command.data_in_bytes)
            assert self.space.pool is not None
            buffer = self.space.pool.allocate(wanted) if wanted else None
            if buffer is not None:
                at = lba
                for view in buffer.views(0, wanted):
                    view[:] = self.disk[at : at + len(view)]
                    at += len(view)
            return scsi.Outcome(buffer=buffer, transfer_bytes=length)
        if command.cdb[0] == 0x2A:
            wanted = min(length, command.data_out_bytes)
            if wanted:
                assert command.data_out is not None
                data = b"".join(bytes(view) for view in command.data_out.views(0, wanted))
                self.disk[lba : lba + wanted] = data
            return scsi.Outcome(transfer_bytes=length)
        return scsi.Outcome()

    # Shorthands

    def login(self, **keys: Any) -> Initiator:
        self.initiator.login(TARGET, **keys)
        self.run()
        assert self.session is not None
        return self.initiator

    def pass_time(self, seconds: float) -> None:
        """Let time go by in ticks of a second."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(self.now + 1.0, end)
            self.happened(self.connection.tick(self.now))
            self.run()

    def until(self, is_done: Callable[[], bool]) -> None:
        self.run()
        assert is_done()
