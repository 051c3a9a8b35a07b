"""The non-blocking client against a fake server that is stepped by hand."""

from __future__ import annotations

import errno
import gc
import random
import struct
import time
import weakref
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from iscsi_ovs import block
from iscsi_ovs.block import Operation
from iscsi_ovs.storage import queue
from iscsi_ovs.storage.device import DeviceHandle
from iscsi_ovs.storage.queue import RingQueue
from iscsi_ovs.storage.service import Service
from shm_server.abi import control, layout
from tests.storage.conftest import Pair
from tests.storage.fake_server import FakeServer


def queue_of(pair: Pair) -> RingQueue:
    queue = pair.service._queue
    assert queue is not None
    return queue


def test_connecting_attaches_subscribes_and_tells_the_volumes(pair: Pair) -> None:
    """After connect() and some turns, on_attached has the list and a pool is there."""
    assert [info.name for info in pair.attached[0]] == ["demo"]
    assert pair.service.pool.capacity_slots == 64
    assert isinstance(pair.fake.seen[0], control.Hello)
    assert pair.fake.seen[0].words == "a test"


def test_without_a_server_connect_names_the_socket(short_dir: Path) -> None:
    """ENOENT and ECONNREFUSED are sentences with the path."""
    service = Service(str(short_dir / "none.sock"))
    with pytest.raises(OSError, match=r"none\.sock") as caught:
        service.connect()
    assert caught.value.errno == errno.ENOENT
    fake = FakeServer(short_dir / "dead.sock")
    fake.close()
    service = Service(str(short_dir / "dead.sock"))
    with pytest.raises(OSError, match=r"dead\.sock") as caught:
        service.connect()
    assert caught.value.errno == errno.ECONNREFUSED
    with pytest.raises(OSError, match="at most 107") as caught:
        Service("/" + "x" * 200).connect()
    assert caught.value.errno == errno.ENAMETOOLONG


def test_write_then_read_moves_the_bytes_of_the_slot(pair: Pair) -> None:
    """What stands in the buffer reaches the volume, and comes back."""
    device = pair.open()
    write = pair.request(Operation.WRITE, 4096, 100_000)
    assert write.buffer is not None
    payload = random.Random(1).randbytes(100_000)
    write.buffer.views(0, 100_000)[0][:] = payload
    device.submit(write)
    pair.until(lambda: pair.completions)
    assert pair.completions[0] == block.Completion(write, None, 100_000, 0)
    read = pair.request(Operation.READ, 4096, 100_000)
    device.submit(read)
    pair.until(lambda: len(pair.completions) == 2)
    assert read.buffer is not None
    assert bytes(read.buffer.views(0, 100_000)[0]) == payload


def test_flags_and_geometry(pair: Pair) -> None:
    """FUA and NO_UNMAP reach the entry; geometry and features come from the server's info and the access mode."""
    device = pair.open()
    assert device.geometry == block.Geometry(1 << 20)
    assert device.features == block.Features()
    assert pair.open(access="r").features == block.Features(False, False, can_copy=False)
    device.submit(block.Request(Operation.WRITE_ZEROES, 0, 512, fua=True, no_unmap=True, done=pair.completions.append))
    pair.until(lambda: pair.completions)
    assert pair.fake.entries[-1][:2] == (layout.Opcode.WRITE_ZEROES, layout.FLAG_FUA | layout.FLAG_NO_UNMAP)


@pytest.mark.parametrize(
    ("operation", "pattern_bytes", "part_bytes"),
    [
        (Operation.COMPARE, 0, 4096),
        (Operation.COMPARE, 512, 512),
        (Operation.WRITE_SAME, 512, 512),
        (Operation.COMPARE_AND_WRITE, 0, 8192),
        (Operation.OR_WRITE, 0, 4096),
        (Operation.WRITE_ATOMIC, 0, 4096),
    ],
)
def test_how_much_of_its_buffer_an_operation_uses(
    pair: Pair, operation: Operation, pattern_bytes: int, part_bytes: int
) -> None:
    """A pattern's length, twice the length where data to compare stand before data to write, else the length."""
    device = pair.open()
    buffer = pair.service.pool.allocate(8192)
    request = block.Request(operation, 0, 4096, buffer, pattern_bytes=pattern_bytes, done=pair.completions.append)
    device.submit(request)
    pair.until(lambda: pair.completions)
    entry = pair.fake.entries[-1]
    assert (entry[0], entry[2], entry[7], entry[11]) == (operation, 1, 4096, part_bytes)


def test_a_copy_names_its_source(pair: Pair) -> None:
    """Handle, epoch and offset of the source stand where parts would; a source of another attachment is unreachable."""
    source, device = pair.open(), pair.open()
    offset = (5 << 32) + 512
    device.submit(
        block.Request(
            Operation.COPY, 4096, 1024, source=source, source_offset_bytes=offset, done=pair.completions.append
        )
    )
    pair.until(lambda: pair.completions)
    entry = pair.fake.entries[-1]
    assert entry[:8] == (Operation.COPY, 0, layout.COPY_SOURCE_PARTS, device.handle, device.epoch, 0, 4096, 1024)
    assert entry[9:] == (512, 5, source.handle, source.epoch, *[0] * 17)
    pair.service.close()
    device.submit(block.Request(Operation.COPY, 0, 512, source=source, done=pair.completions.append))
    pair.service.collect()
    assert pair.completions[1].error is block.Error.UNREACHABLE


def test_what_may_not_be_done_twice_has_an_unknown_outcome(pair: Pair) -> None:
    """When the server dies COMPARE AND WRITE and COPY in flight are OUTCOME UNKNOWN, all else may be tried again."""
    device = pair.open()
    pair.fake.is_holding = True
    for operation in set(Operation) - {Operation.FENCE}:
        device.submit(block.Request(operation, done=pair.completions.append))
    pair.turn()
    pair.fake.drop()
    pair.until(lambda: pair.completions)
    unknown = {each.request.operation for each in pair.completions if each.error is block.Error.OUTCOME_UNKNOWN}
    assert unknown == {Operation.COMPARE_AND_WRITE, Operation.COPY}
    assert {each.error for each in pair.completions} == {block.Error.OUTCOME_UNKNOWN, block.Error.UNREACHABLE}


def test_more_in_flight_than_the_ring_holds_waits_in_order(pair: Pair) -> None:
    """200 requests on a ring of 16 entries all end; what waited went in order; never more than the limit in flight."""
    device = pair.open()
    requests = [pair.request(Operation.READ, n * 512, 512) for n in range(60)]
    requests += [block.Request(Operation.FLUSH, done=pair.completions.append) for _ in range(140)]
    pair.fake.is_holding = True
    for request in requests:
        device.submit(request)
    queue = queue_of(pair)
    assert queue.waiting > 100
    pair.turn(5)
    assert queue.in_flight <= queue.in_flight_limit == 32
    pair.fake.is_holding = False
    pair.until(lambda: len(pair.completions) == 200)
    assert [completion.request for completion in pair.completions] == requests
    assert queue.in_flight == queue.waiting == 0


def test_requests_of_many_parts_take_continuations(pair: Pair) -> None:
    """A fragmented pool gives many runs: head and continuations are published together and counted as room."""
    device = pair.open()
    singles = [pair.service.pool.allocate(1) for _ in range(64)]
    for single in singles[::2]:
        assert single is not None
        single.release()
    request = pair.request(Operation.DISCARD, 0, 0)
    request.operation, request.length_bytes = Operation.READ, 32 * 65536
    request.buffer = pair.service.pool.allocate(32 * 65536)
    device.submit(request)
    pair.until(lambda: pair.completions)
    assert [entry[0] for entry in pair.fake.entries[-4:]] == [Operation.READ, 127, 127, 127]
    assert pair.fake.entries[-4][2] == 32


def test_errors_are_mapped_by_operation(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """EIO says what failed; the others say what they are."""
    device = pair.open()
    answers = [
        (Operation.READ, False, errno.EIO, block.Error.MEDIUM_READ),
        (Operation.WRITE, False, errno.EIO, block.Error.MEDIUM_WRITE),
        (Operation.WRITE, True, errno.EIO, block.Error.WRITE_FAULT),
        (Operation.FLUSH, False, errno.EIO, block.Error.WRITE_FAULT),
        (Operation.WRITE, False, errno.EFBIG, block.Error.OUT_OF_RANGE),
        (Operation.WRITE, False, errno.ENOSPC, block.Error.NO_SPACE),
        (Operation.WRITE, False, errno.EBADF, block.Error.READ_ONLY),
        (Operation.DISCARD, False, errno.EOPNOTSUPP, block.Error.UNSUPPORTED),
        (Operation.READ, False, errno.EFAULT, block.Error.INVALID),
        (Operation.READ, False, errno.ECANCELED, block.Error.CANCELLED),
        (Operation.WRITE, False, errno.EBADMSG, block.Error.BAD_PAGE),
        (Operation.READ, False, 4000, block.Error.MEDIUM_READ),
    ]
    for operation, fua, number, error in answers:
        monkeypatch.setattr(pair.fake, "answer_entry", lambda entry, n=number: pair.fake.complete(entry[8], n, 0))
        request = pair.request(operation)
        request.fua = fua
        device.submit(request)
        pair.until(lambda: pair.completions)
        assert pair.completions.pop().error is error


def test_a_fence_cancels_what_waits_and_moves_the_epoch(pair: Pair) -> None:
    """The backlog is discarded at once, the entries of before the fence by the server, what follows goes on."""
    device = pair.open()
    pair.fake.is_holding = True
    for _ in range(100):
        device.submit(block.Request(Operation.FLUSH, done=pair.completions.append))
    waiting = queue_of(pair).waiting
    fenced: list[int] = []
    device.fence(lambda: fenced.append(len(pair.completions)))
    assert device.epoch == 8
    pair.turn()
    assert [completion.error for completion in pair.completions] == [block.Error.CANCELLED] * waiting
    pair.fake.is_holding = False
    pair.until(lambda: fenced)
    assert fenced == [100]
    pair.completions.clear()
    device.submit(pair.request(Operation.READ))
    pair.until(lambda: pair.completions)
    assert pair.completions[0].error is None


def test_a_fence_behind_a_full_ring_is_its_handle_s_alone(pair: Pair) -> None:
    """What another handle has in the backlog goes on, and a fence that waits there is not over before its time."""
    device, other = pair.open(), pair.open()
    pair.fake.is_holding = True
    for _ in range(100):
        other.submit(block.Request(Operation.FLUSH, done=pair.completions.append))
    assert queue_of(pair).waiting
    fenced: list[int] = []
    for number in range(2):
        device.fence(partial(fenced.append, number))
    for _ in range(3):
        pair.turn()
    assert (pair.completions, fenced) == ([], [])
    pair.fake.is_holding = False
    pair.until(lambda: len(fenced) == 2)
    assert [completion.error for completion in pair.completions] == [None] * 100


def test_the_backlog_has_a_limit(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes beyond it never waits: it is told that the server can't be reached."""
    monkeypatch.setattr(queue, "BACKLOG_LIMIT", 10)
    device = pair.open()
    pair.fake.is_holding = True
    for _ in range(100):
        device.submit(block.Request(Operation.FLUSH, done=pair.completions.append))
    assert queue_of(pair).waiting == 10
    in_ring = queue_of(pair).submission_entries
    pair.turn()
    assert [completion.error for completion in pair.completions] == [block.Error.UNREACHABLE] * (90 - in_ring)


def test_a_callback_may_collect_and_may_raise(pair: Pair) -> None:
    """Nothing is called twice, nothing is lost."""
    device = pair.open()
    order: list[str] = []

    def nested(completion: block.Completion) -> None:
        order.append("outer")
        pair.service.collect()
        order.append("back")

    def failing(completion: block.Completion) -> None:
        order.append("raise")
        raise ValueError("callback")

    for done in (nested, lambda c: order.append("inner"), failing, lambda c: order.append("rest")):
        device.submit(block.Request(Operation.FLUSH, done=done))
    pair.service.flush()
    pair.fake.step()
    with pytest.raises(ValueError, match="callback"):
        pair.service.collect()
    pair.service.collect()
    assert order == ["outer", "inner", "raise", "rest"]
    assert queue_of(pair).in_flight == 0


def test_a_callback_that_raises_is_told_of(pair: Pair) -> None:
    """With on_mistake nothing raises out of collect(): it hears of the request, and those behind it go on."""
    pair.service.close()
    mistakes: list[tuple[block.Request, str]] = []
    pair.service.on_mistake = lambda request, error: mistakes.append((request, str(error)))
    pair.service.connect()
    pair.until(lambda: len(pair.attached) == 2)
    device = pair.open()

    def failing(completion: block.Completion) -> None:
        raise ValueError(f"callback {completion.request.offset_bytes}")

    requests = []
    for number in range(6):
        done = failing if number % 2 else pair.completions.append
        requests.append(block.Request(Operation.READ, number, 0, done=done))
        device.submit(requests[-1])
    pair.until(lambda: len(pair.completions) == 3)
    assert mistakes == [(requests[number], f"callback {number}") for number in (1, 3, 5)]
    assert [completion.request for completion in pair.completions] == requests[::2]
    assert queue_of(pair).in_flight == 0


def test_a_handle_is_closed_behind_its_completions(pair: Pair) -> None:
    """What is in the ring, and what waits for a place in it, has ended before the server hears of the close."""
    device = pair.open()
    pair.fake.is_holding = True
    count = 2 * queue_of(pair).submission_entries
    for _ in range(count):
        device.submit(block.Request(Operation.FLUSH, done=pair.completions.append))
    ends: list[int] = []
    device.close(lambda error: ends.append(len(pair.completions)))
    pair.turn(3)
    assert not any(isinstance(request, control.Close) for request in pair.fake.seen)
    pair.fake.is_holding = False
    pair.until(lambda: ends)
    assert ends == [count]


def test_the_end_of_the_server_completes_everything(pair: Pair) -> None:
    """In flight, waiting, control requests, fences: all called back, then on_lost, with descriptors still open."""
    device = pair.open()
    pair.fake.is_holding = True
    for _ in range(50):
        device.submit(pair.request(Operation.READ, 0, 512))
    fenced: list[bool] = []
    answers: list[object] = []
    closed: list[object] = []
    pair.turn()
    pair.service.request(control.Stat(0, "demo"), answers.append)
    device.fence(lambda: fenced.append(True))
    open_descriptors: list[tuple[int, int, int]] = []

    def lost(error: OSError) -> None:
        open_descriptors.append((pair.service.control_fileno(), pair.service.doorbell_fileno(), len(pair.completions)))

    pair.service.on_lost = lost
    pair.fake.drop()
    pair.service.control_ready()
    assert isinstance(answers[0], OSError)
    assert fenced == [True]
    assert {completion.error for completion in pair.completions} <= {block.Error.UNREACHABLE, block.Error.CANCELLED}
    assert open_descriptors[0][0] > 0
    assert open_descriptors[0][1] > 0
    pair.service.collect()
    assert len(pair.completions) == 50
    assert pair.service.control_fileno() == pair.service.doorbell_fileno() == -1
    assert device.is_lost
    pair.completions.clear()
    device.submit(block.Request(Operation.FLUSH, done=pair.completions.append))
    assert not pair.completions, "never from inside submit"
    assert not pair.service.prepare_sleep()
    pair.service.collect()
    assert pair.completions[0].error is block.Error.UNREACHABLE
    device.close(closed.append)
    pair.service.collect()
    assert closed == [None]


def test_buffers_of_a_lost_attachment_are_harmless(pair: Pair) -> None:
    """Their memory lives on, releasing them is fine, a new handle refuses them, and the segment goes with the last."""
    old = pair.service.pool.allocate(4096)
    assert old is not None
    view = old.views(0, 4096)[0]
    memory = weakref.ref(pair.service.pool)
    pair.fake.drop()
    pair.until(lambda: pair.lost)
    view[:5] = b"still"
    pair.service.connect()
    pair.until(lambda: len(pair.attached) == 2)
    device = pair.open()
    device.submit(block.Request(Operation.WRITE, 0, 4096, old, done=pair.completions.append))
    pair.service.collect()
    assert pair.completions[0].error is block.Error.UNREACHABLE
    assert pair.service.pool.free_slots == 64
    old.release()
    assert pair.service.pool.free_slots == 64, "it went back to its own pool"
    assert bytes(view[:5]) == b"still"
    pair.completions.clear()
    del old
    gc.collect()
    assert memory() is None, "nothing but views holds the old segment"


def test_events_update_the_handles_and_are_acknowledged(pair: Pair) -> None:
    """VolumeResized changes the geometry before on_event sees it; ack() sends the sequence."""
    device = pair.open()
    seen: list[tuple[control.Event, int]] = []
    pair.service.on_event = lambda event: seen.append((event, device.geometry.size_bytes))
    pair.fake.volumes["demo"] += bytes(4096)
    pair.fake.send(control.VolumeResized(5, pair.fake.info("demo")))
    pair.fake.send(control.VolumeCreated(6, pair.fake.info("demo")))
    pair.until(lambda: len(seen) == 2)
    assert seen[0][1] == (1 << 20) + 4096
    pair.service.ack(seen[0][0])
    pair.until(lambda: control.Ack(5) in pair.fake.seen)


def test_sleep_and_doorbell(pair: Pair) -> None:
    """Armed, the doorbell rings at the next completion; wake() clears it."""
    device = pair.open()
    device.submit(pair.request(Operation.READ))
    assert pair.service.prepare_sleep()
    pair.fake.step()
    assert not pair.service.prepare_sleep()
    assert pair.fake.bells is not None
    with open(pair.service.doorbell_fileno(), "rb", buffering=0, closefd=False) as bell:
        assert bell.read(8) == struct.pack("<Q", 1)
    pair.service.wake()
    assert pair.service.has_pending()
    assert pair.service.collect() == 1


Sabotage = Callable[[Pair, DeviceHandle], None]


def _unknown_tag(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.complete(31, 0, 0)
    assert pair.fake._rings is not None
    pair.fake._rings[1].publish()


def _wild_tag(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.complete(1 << 63, 0, 0)
    assert pair.fake._rings is not None
    pair.fake._rings[1].publish()


def _twice(pair: Pair, device: DeviceHandle) -> None:
    pair.service.flush()
    pair.fake.step()
    pair.fake.complete(pair.fake.entries[-1][8], 0, 0)
    assert pair.fake._rings is not None
    pair.fake._rings[1].publish()


def _wild_tail(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.is_holding = True
    pair.fake.ring_memory[:4096].cast("I")[layout.WORD_COMPLETION_TAIL] = 0xDEAD


def _wild_head(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.ring_memory[:4096].cast("I")[layout.WORD_SUBMISSION_HEAD] = 0xDEAD
    for _ in range(17):
        device.submit(block.Request(Operation.FLUSH, done=pair.completions.append))


def _garbage(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.send_raw(b"\x05\x00\x00\x00garba")


def _too_long(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.send_raw(b"\xff\xff\xff\xffgarba")


def _reply_to_nothing(pair: Pair, device: DeviceHandle) -> None:
    pair.fake.send(control.Done(12345))


def _descriptors(pair: Pair, device: DeviceHandle) -> None:
    for _ in range(2):
        pair.fake.send(control.VolumeRemoved(1, "x", "y"), [0, 1, 2])


@pytest.mark.parametrize(
    "sabotage",
    [_unknown_tag, _wild_tag, _twice, _wild_tail, _wild_head, _garbage, _too_long, _reply_to_nothing, _descriptors],
)
def test_a_server_that_does_what_cannot_be_is_lost_not_believed(pair: Pair, sabotage: Sabotage) -> None:
    """No exception reaches the loop; requests complete as unreachable; on_lost says EPROTO."""
    device = pair.open()
    device.submit(pair.request(Operation.READ))
    sabotage(pair, device)
    pair.until(lambda: pair.lost)
    assert pair.lost[0].errno == errno.EPROTO
    pair.service.collect()
    assert pair.completions
    assert not pair.service.is_connected


def _hello_of_version_2(pair: Pair, request: control.Request) -> control.Message:
    return control.Welcome(request.id, 2, "", 1, "") if isinstance(request, control.Hello) else control.Done(0)


def _hello_refused(pair: Pair, request: control.Request) -> control.Message:
    return control.Failed(0, errno.EACCES, "not your uid")


def _wrong_kind(pair: Pair, request: control.Request) -> control.Message:
    return control.Done(getattr(request, "id", 0))


def _attach_refused(pair: Pair, request: control.Request) -> control.Message:
    if isinstance(request, control.Hello):
        return control.Welcome(request.id, 1, "", 1, "")
    return control.Failed(getattr(request, "id", 0), errno.EACCES, "set filesystem.fs_enable_shm_interface")


def _no_descriptors(pair: Pair, request: control.Request) -> control.Message:
    if isinstance(request, control.Hello):
        return control.Welcome(request.id, 1, "", 1, "")
    return control.Attached(getattr(request, "id", 0), 65536, 4, 16, 32)


@pytest.mark.parametrize(
    ("answer", "number"),
    [
        (_hello_of_version_2, errno.EPROTO),
        (_hello_refused, errno.EACCES),
        (_wrong_kind, errno.EPROTO),
        (_attach_refused, errno.EACCES),
        (_no_descriptors, errno.EPROTO),
    ],
)
def test_a_handshake_that_fails_is_told_by_on_lost(
    fake: FakeServer, answer: Callable[[Pair, control.Request], control.Message], number: int
) -> None:
    """The server's own words arrive."""
    pair = Pair(fake, Service(str(fake.path), segment_bytes=1 << 20))
    fake.answer_control = lambda request: fake.send(answer(pair, request))  # type: ignore[method-assign]
    pair.service.connect()
    pair.until(lambda: pair.lost)
    assert pair.lost[0].errno == number
    assert not pair.attached


def test_progress_goes_to_who_asked(short_dir: Path) -> None:
    """A blocking call hears how far its own request has come, in order; another request's progress, and one's that has
    its reply, goes nowhere and harms nothing."""
    fake = FakeServer(short_dir / "server.sock")
    told: list[tuple[int, int]] = []
    answer = fake.answer_control

    def answer_slowly(request: control.Request) -> None:
        if isinstance(request, control.List):
            for number, done in ((request.id, 1), (request.id + 1, 7), (request.id, 2)):
                fake.send(control.Progressed(0, number, done, 2))
        answer(request)
        if isinstance(request, control.List):
            fake.send(control.Progressed(0, request.id, 3, 3))

    fake.answer_control = answer_slowly
    service = Service(str(fake.path), management_only=True)
    service.connect()
    with fake.running():
        for _ in range(2):
            service.call(control.List(0), 10, lambda *state: told.append(state))
            assert service.is_connected
    assert told == [(1, 2), (2, 2)] * 2
    service.close()
    fake.close()


def test_silence_is_what_a_call_does_not_wait_for(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that a call may take begins anew with each word of progress, whether or not somebody listens to it."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    fake = FakeServer(short_dir / "server.sock")
    answer = fake.answer_control

    def answer_slowly(request: control.Request) -> None:
        nonlocal now
        if isinstance(request, control.List):
            for done in range(10):
                now += 8.0
                fake.send(control.Progressed(0, request.id, done, 10))
        answer(request)

    fake.answer_control = answer_slowly
    service = Service(str(fake.path), management_only=True)
    service.connect()
    with fake.running():
        service.call(control.List(0), 10.0)
    service.close()
    fake.close()
