"""Two sessions on one small segment, and everything that may happen to them, in any order (hypothesis, stateful).

The owner of the connections is the target in small: reads wait for slots in line, commands are "in the volume server"
until the test completes them, in any order. Data is a pattern of the task's tag: what the volume server sees at the
beginning and at the end of a write must be what was sent, and what a read brings must be what it was given, so a slot
with two owners shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from iscsi_ovs import block, pdu, scsi
from iscsi_ovs.session import events, serial
from iscsi_ovs.session.space import Space
from iscsi_ovs.storage.slots import SlotPool
from tests.session.conversation import BLOCK, Conversation, read_cdb, write_cdb

SLOT = 2048
SLOTS = 1200
SIZES = [BLOCK, 4096, 8192, 40960, 256 << 10, 600 << 10, 600 << 10]
# is it a read, its size, immediate bytes, unsolicited data, 0: an immediate command
WISHES = st.tuples(
    st.booleans(), st.sampled_from(SIZES), st.sampled_from([None, 0, 512]), st.booleans(), st.integers(0, 9)
)
SELDOM = st.integers(0, 3)


def pattern(tag: int, length: int) -> bytes:
    return bytes(((tag * 37 + 1) & 0xFF,)) * length


@dataclass
class InServer:
    """A command that the volume server has."""

    talk: Peer
    command: scsi.Command
    tag: int
    is_read: bool
    length: int
    buffer: block.Buffer | None
    generation: int


class Peer(Conversation):
    """One session. Its owner is the machine."""

    def __init__(self, machine: Machine, number: int) -> None:
        super().__init__(space=machine.space, isid=bytes((0x80, 0, 0, 0, 0, number)))
        self.machine = machine
        self.executes_at_once = False
        self.kinds: dict[int, tuple[bool, int]] = {}  # tag → is_read, length
        self.aborts: dict[int, int | None] = {}  # function's tag → victim's; None: a reset
        self.given_up: set[int] = set()  # tags that will not be answered
        self.unanswered: list[Any] = []  # R2Ts
        self.backlog = b""
        self.login(FirstBurstLength="8192", MaxBurstLength="65536", MaxRecvDataSegmentLength="16384")
        self.initiator.answer_r2t = False
        self.highest = self.initiator.max_cmd_sn

    def move(self, limit: int | None = None) -> None:
        """Carry bytes both ways: all of them, or ``limit`` to the target and no more."""
        while True:
            self.backlog += self.initiator.to_send()
            piece = self.backlog if limit is None else self.backlog[:limit]
            self.backlog = self.backlog[len(piece) :]
            self.to_target(piece)
            seen = len(self.seen)
            moved = self.to_initiator()
            for received in self.seen[seen:]:
                self.heard(received.header)
            if limit is not None or not (moved or piece or self.backlog):
                return

    def heard(self, header: Any) -> None:
        if isinstance(header, pdu.ReadyToTransfer):
            self.unanswered.append(header)
        if not isinstance(header, pdu.LoginResponse):
            assert serial.distance(self.highest, header.max_cmd_sn) >= 0, "MaxCmdSN went back"
            self.highest = header.max_cmd_sn
        if isinstance(header, pdu.TaskManagementResponse) and header.response == pdu.FUNCTION_COMPLETE:
            victim = self.aborts[header.initiator_task_tag]
            for item in self.machine.in_server:
                if victim is not None:
                    assert item.talk is not self or item.tag != victim, "complete, but it may still happen"

    def answer_one(self, index: int) -> None:
        r2t = self.unanswered.pop(index)
        result = self.initiator.results[r2t.initiator_task_tag]
        if not result.is_complete and r2t.initiator_task_tag not in self.aborts.values():
            self.initiator.answer(r2t)  # those of a task set that was aborted, too (section 4.2.3.3)

    def tick(self, seconds: float) -> None:
        self.now += seconds
        self.happened(self.connection.tick(self.now))

    def happened(self, told: list[events.Event]) -> None:
        for event in told:
            if isinstance(event, scsi.Command):
                self.machine.execute(self, event)
            elif isinstance(event, events.TaskManagementRequested):
                self.machine.reset(self, event)
            else:
                super().happened([event])


class Machine(RuleBasedStateMachine):
    """See the head of this file."""

    @initialize()
    def begin(self) -> None:
        self.space = Space()
        self.in_server: list[InServer] = []
        self.old: list[Peer] = []
        self.peers: list[Peer] = []
        self.pool = SlotPool(memoryview(bytearray(SLOTS * SLOT)), SLOT)
        self.space.attach(self.pool, [])
        self.logins = 0
        for _ in range(2):
            self.peers.append(self.new_peer())

    def new_peer(self) -> Peer:
        self.logins += 1
        return Peer(self, self.logins & 0xFF)

    # The owner of the connections

    def execute(self, talk: Peer, command: scsi.Command) -> None:
        task = command.context
        if task.is_aborted:
            task.session.complete(command, scsi.Outcome())
            return
        is_read, length = talk.kinds[task.initiator_task_tag]
        pool = self.space.pool
        if pool is None:
            task.session.complete(command, scsi.Outcome(status=scsi.BUSY))
            return
        if not is_read:
            assert command.data_out is not None
            self.start(talk, command, command.data_out)
            return

        def grab() -> bool:
            assert self.space.pool is not None
            buffer = self.space.pool.allocate(length)
            if buffer is None:
                return False
            task.waiter = None
            self.start(talk, command, buffer)
            return True

        task.waiter = self.space.wait(grab)

    def start(self, talk: Peer, command: scsi.Command, buffer: block.Buffer) -> None:
        tag = command.context.initiator_task_tag
        is_read, length = talk.kinds[tag]
        item = InServer(talk, command, tag, is_read, length, buffer, self.space.generation)
        self.check_content(item)
        self.in_server.append(item)

    def check_content(self, item: InServer) -> None:
        if not item.is_read:
            assert item.buffer is not None
            for view in item.buffer.views(0, item.length):
                assert view == pattern(item.tag, len(view)), "not the data that was sent for this command"

    def finish(self, item: InServer, is_lost: bool = False) -> None:
        session = item.command.context.session
        self.check_content(item)
        if is_lost:
            session.complete(item.command, scsi.Outcome(scsi.BUSY, buffer=item.buffer if item.is_read else None))
        elif item.is_read:
            assert item.buffer is not None
            for view in item.buffer.views(0, item.length):
                view[:] = pattern(item.tag, len(view))
            session.complete(item.command, scsi.Outcome(buffer=item.buffer, transfer_bytes=item.length))
        else:
            session.complete(item.command, scsi.Outcome(transfer_bytes=item.length))

    def reset(self, talk: Peer, event: events.TaskManagementRequested) -> None:
        left = 1

        def one_done() -> None:
            nonlocal left
            left -= 1
            if not left:
                event.session.management.answer(event.request, pdu.FUNCTION_COMPLETE)

        for peer in self.peers:
            assert peer.session is not None
            for task in peer.session.tasks:
                peer.given_up.add(task.initiator_task_tag)
                left += 1
                peer.session.management.abort(task, one_done, is_own=peer.session is event.session)
        one_done()

    # What happens

    def peer(self, number: int) -> Peer:
        return self.peers[number % len(self.peers)]

    @rule(number=st.integers(0, 1), wishes=st.lists(WISHES, min_size=1, max_size=6), moves=st.booleans())
    def commands(self, number: int, wishes: list[tuple[bool, int, int | None, bool, int]], moves: bool) -> None:
        peer = self.peer(number)
        for is_read, size, immediate_data, unsolicited, immediate in wishes:
            tag = peer.initiator._itt + 1
            peer.kinds[tag] = is_read, size
            if is_read:
                peer.initiator.command(read_cdb(0, size // BLOCK), read=size, immediate=immediate == 0)
            else:
                peer.initiator.command(
                    write_cdb(0, size // BLOCK),
                    write=pattern(tag, size),
                    immediate_data=immediate_data,
                    unsolicited_data=unsolicited,
                    immediate=immediate == 0,
                )
        if moves:
            peer.move()

    @rule(number=st.integers(0, 1), limit=st.integers(1, 30000))
    def some_bytes(self, number: int, limit: int) -> None:
        self.peer(number).move(limit)

    @rule(number=st.integers(0, 1))
    def all_bytes(self, number: int) -> None:
        self.peer(number).move()

    @precondition(lambda self: any(peer.unanswered for peer in self.peers))
    @rule(pick=st.integers(0, 1000), limit=st.one_of(st.none(), st.integers(1, 70000)))
    def answer(self, pick: int, limit: int | None) -> None:
        waiting = [peer for peer in self.peers if peer.unanswered]
        peer = waiting[pick % len(waiting)]
        peer.answer_one(0)  # DataSequenceInOrder=Yes
        peer.move(limit)

    @precondition(lambda self: self.in_server)
    @rule(pick=st.integers(0, 1000))
    def complete(self, pick: int) -> None:
        self.finish(self.in_server.pop(pick % len(self.in_server)))

    @rule()
    def turn(self) -> None:
        self.space.serve()

    @rule(number=st.integers(0, 1))
    def a_second_passes(self, number: int) -> None:
        self.peer(number).tick(1.0)

    @rule(number=st.integers(0, 1), pick=st.integers(0, 1000))
    def abort(self, number: int, pick: int) -> None:
        peer = self.peer(number)
        open_tags = [tag for tag in peer.kinds if not peer.initiator.results[tag].is_complete]
        if open_tags:
            victim = open_tags[pick % len(open_tags)]
            peer.aborts[peer.initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=victim, immediate=False)] = victim
            peer.given_up.add(victim)

    @rule(number=st.integers(0, 1), seldom=SELDOM)
    def reset_unit(self, number: int, seldom: int) -> None:
        if seldom:
            return
        peer = self.peer(number)
        peer.aborts[peer.initiator.tmf(pdu.LOGICAL_UNIT_RESET)] = None

    @rule(number=st.integers(0, 1), seldom=SELDOM)
    def lose(self, number: int, seldom: int) -> None:
        if seldom:
            return
        number %= len(self.peers)
        peer = self.peers[number]
        peer.happened(peer.connection.lost("cable"))
        assert peer.session is not None
        peer.session.when_idle(peer.session.window.close)
        self.old.append(peer)
        self.peers[number] = self.new_peer()

    @rule(seldom=SELDOM)
    def server_dies(self, seldom: int) -> None:
        if seldom or self.space.pool is None:
            return
        items, self.in_server = self.in_server, []
        for item in items:
            self.finish(item, is_lost=True)
        self.space.detach()
        for peer in [*self.peers, *self.old]:
            assert peer.session is not None
            peer.session.space_lost()

    @precondition(lambda self: self.space.pool is None)
    @rule()
    def server_returns(self) -> None:
        self.pool = SlotPool(memoryview(bytearray(SLOTS * SLOT)), SLOT)
        self.space.attach(self.pool, [peer.session.window for peer in self.peers if peer.session is not None])

    @invariant()
    def the_books_are_right(self) -> None:
        pool = self.space.pool
        if pool is None:
            return
        assert isinstance(pool, SlotPool)
        assert pool.free_slots >= 0
        assert pool.reserved_slots >= 0
        assert sum(pool._map) == pool.free_slots + pool.reserved_slots

    def teardown(self) -> None:
        """When everything that can happen has happened, everybody is answered, and every slot is free."""
        if not hasattr(self, "peers"):
            return
        if self.space.pool is None:
            self.server_returns()
        for _ in range(1000):
            self.space.serve()
            for peer in self.peers:
                peer.move()
                while peer.unanswered:
                    peer.answer_one(0)
                    peer.move()
                peer.tick(0.0)
                peer.move()
            is_quiet = not any(peer.connection.has_output or peer.unanswered for peer in self.peers)
            if is_quiet and not self.in_server and not self.space.has_waiters:
                break
            while self.in_server:
                self.finish(self.in_server.pop(0))
        for peer in self.peers:
            assert not peer.initiator._waiting, "commands wait for a window that nobody opens"
            for tag in peer.kinds:
                assert peer.initiator.results[tag].is_complete or tag in peer.given_up, "never answered"
                result = peer.initiator.results[tag]
                if result.status == scsi.GOOD and peer.kinds[tag][0]:
                    assert result.data == pattern(tag, peer.kinds[tag][1])
            for tag in peer.aborts:
                assert peer.initiator.results[tag].is_complete
        for number in range(len(self.peers)):
            peer = self.peers[number]
            peer.happened(peer.connection.lost("the end"))
            assert peer.session is not None
            peer.session.when_idle(peer.session.window.close)
        pool = self.space.pool
        assert pool is not None
        assert (pool.free_slots, pool.reserved_slots) == (SLOTS, 0)
        assert self.space.granted_slots == 0


TestTwoSessions = Machine.TestCase
TestTwoSessions.settings = settings(max_examples=40, stateful_step_count=40)
