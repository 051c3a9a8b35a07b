"""The client library against the real volume server, in a process of its own."""

from __future__ import annotations

import errno
import os
import random
import select
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iscsi_ovs import paths, shm_client
from iscsi_ovs.shm_client import Context, Volume
from shm_server.abi import control
from tests.storage.fake_server import FakeServer
from tests.storage.server_process import ServerProcess

SIZE = 1 << 20


@pytest.fixture
def server(short_dir: Path) -> Iterator[ServerProcess]:
    process = ServerProcess(short_dir)
    process.start()
    yield process
    process.stop()


@pytest.fixture
def context(server: ServerProcess) -> Iterator[Context]:
    with Context(server.socket_path) as made:
        made.create_volume("demo", SIZE)
        yield made


@pytest.fixture
def volume(context: Context) -> Iterator[Volume]:
    with context.open("demo") as opened:
        yield opened


def raises(number: int) -> pytest.RaisesExc[OSError]:
    return pytest.RaisesExc(OSError, check=lambda error: error.errno == number)


def put(volume: Volume, data: bytes, offset: int) -> None:
    context: Context = volume._context  # type: ignore[assignment]
    buffer = context.allocate(len(data))
    buffer.data[:] = data
    assert volume.write(buffer, len(data), offset) == len(data)
    context.deallocate(buffer)


def get(volume: Volume, length: int, offset: int) -> bytes:
    context: Context = volume._context  # type: ignore[assignment]
    buffer = context.allocate(length)
    data = bytes(buffer.data[: volume.read(buffer, length, offset)])
    context.deallocate(buffer)
    return data


def test_what_the_server_compares_and_copies(context: Context, volume: Volume) -> None:
    """COMPARE, COMPARE AND WRITE, OR WRITE and COPY, by their methods."""
    buffer = context.allocate(2048)
    buffer.data[:] = b"a" * 1024 + b"b" * 1024
    assert volume.compare(buffer, 1024, 0) == 0
    assert volume.compare_and_write(buffer, 512, 512, buffer_offset=512) == 0
    put(volume, b"a" * 1000, 0)
    assert volume.compare(buffer, 1024, 0) == 1000
    assert volume.compare(buffer, 1000, 0, pattern=4) is None
    assert volume.compare_and_write(buffer, 512, 0, fua=True, buffer_offset=512) is None
    assert get(volume, 1024, 0) == b"b" * 512 + b"a" * 488 + bytes(24)
    assert volume.or_write(buffer, 512, 0) == 512
    assert get(volume, 1, 0) == b"c"
    assert volume.device.features.max_atomic_write_bytes == volume.stat().max_atomic_write_bytes >= 65536
    assert volume.write_atomic(buffer, 100, 2000) == 100
    assert get(volume, 100, 2000) == b"a" * 100
    context.create_volume("other", SIZE)
    with context.open("other") as other, context.open("other", os.O_RDONLY, owner="x") as reader:
        assert other.copy_from(volume, 1024, 4096, 0) == 1024
        assert get(other, 1024, 4096) == b"c" * 512 + b"a" * 488 + bytes(24)
        with raises(errno.EBADF):
            reader.copy_from(volume, 1024, 4096, 0)
        with raises(errno.EBADF):
            reader.or_write(buffer, 512, 0)
        assert reader.compare(buffer, 512, 0) == 0
        with raises(errno.EFAULT):
            other.compare_and_write(buffer, 1024, 0, buffer_offset=512)
    context.deallocate(buffer)


def test_sanitize(context: Context, volume: Volume) -> None:
    """It has begun when the call returns, and is over when stat says so; handles hear of it."""
    put(volume, b"secret", 4096)
    assert context.sanitize_volume("demo", patterns=[b"not this", b"xyxyxyxy"]).sanitize is not None
    while volume.stat().sanitize is not None:
        pass
    assert get(volume, 8192, 0) == b"xy" * 4096
    while volume.device.info.sanitize is not None:
        context.poll()
    context.sanitize_volume("demo", "block erase")
    with raises(errno.EINVAL):
        context.sanitize_volume("demo", "magnet")


# Management -------------------------------------------------------------------------------------------------------


def test_volumes_are_created_listed_grown_and_removed(server: ServerProcess) -> None:
    """And a context that only manages never takes shared memory."""
    with Context(server.socket_path) as context:
        made = context.create_volume("a", SIZE)
        assert (made.name, made.size_bytes, made.held) == ("a", SIZE, None)
        assert len(made.uuid) == 32
        context.create_volume("b", 2 * SIZE)
        assert sorted(info.name for info in context.list_volumes()) == ["a", "b"]
        assert context.truncate_volume("a", 4 * SIZE).size_bytes == 4 * SIZE
        assert context.stat_volume("a").size_bytes == 4 * SIZE
        assert context.stat_volume("a").uuid == made.uuid
        context.remove_volume("a")
        assert [info.name for info in context.list_volumes()] == ["b"]
        assert not context._service.is_attached


def test_management_errors_are_the_manuals(context: Context) -> None:
    """EEXIST, EINVAL, EFBIG, ENOENT, EPERM: and the server's sentence."""
    with raises(errno.EEXIST):
        context.create_volume("demo", SIZE)
    for name, size in (("Demo", SIZE), ("", SIZE), ("a/b", SIZE), ("x" * 64, SIZE), ("zero", 0), ("minus", -1)):
        with raises(errno.EINVAL):
            context.create_volume(name, size)
    with raises(errno.EFBIG):
        context.create_volume("huge", 1 << 50)
    with raises(errno.EFBIG):
        context.truncate_volume("demo", 1 << 50)
    with raises(errno.EPERM):
        context.truncate_volume("demo", SIZE // 2)
    for call in (context.remove_volume, context.stat_volume, context.open):
        with pytest.raises(FileNotFoundError, match="nothing"):
            call("nothing")
    with raises(errno.ENOENT):
        context.truncate_volume("nothing", SIZE)


def test_the_switch_is_off_by_default_in_the_server(short_dir: Path) -> None:
    """Attaching is refused with the sentence that names the key; management goes on."""
    process = ServerProcess(short_dir, enabled=False)
    process.start()
    with Context(process.socket_path) as context:
        context.create_volume("demo", SIZE)
        with pytest.raises(OSError, match="fs_enable_shm_interface"):
            context.open("demo")
        assert context.list_volumes()
    process.stop()


# Opening ----------------------------------------------------------------------------------------------------------


def test_one_writer_any_readers_and_owner_tokens(server: ServerProcess, context: Context) -> None:
    """EBUSY carries the holder's words; the same owner shares the right; closing frees it."""
    with Context(server.socket_path, words="the second") as other, context.open("demo", owner="we") as volume:
        with pytest.raises(OSError, match=f"pid {os.getpid()}") as caught:
            other.open("demo")
        assert caught.value.errno == errno.EBUSY
        with other.open("demo", os.O_RDONLY) as reader, other.open("demo", owner="we") as writer:
            put(volume, b"one", 0)
            put(writer, b"two", 3)
            assert get(reader, 6, 0) == b"onetwo"
            handles = context.list_handles()
            assert sorted((handle.access, handle.words) for handle in handles)[0] == ("r", "the second")
            assert sum(handle.written_bytes for handle in handles) == 6
        with raises(errno.EBUSY):
            other.remove_volume("demo")
        volume.close()
        other.open("demo").close()
        other.remove_volume("demo")


def test_open_flags_and_modes(context: Context) -> None:
    """Exactly three flags; EBADF for what the mode does not allow, and after close."""
    for flags in (os.O_RDWR | os.O_CREAT, 3, -1):
        with raises(errno.EINVAL):
            context.open("demo", flags)
    buffer = context.allocate(512)
    with context.open("demo", os.O_RDONLY) as volume:
        assert volume.read(buffer, 512, 0) == 512
        for call in (
            lambda: volume.write(buffer, 512, 0),
            volume.flush,
            lambda: volume.discard(0, 512),
            lambda: volume.write_zeroes(0, 512),
            lambda: volume.truncate(2 * SIZE),
        ):
            with raises(errno.EBADF):
                call()
    with context.open("demo", os.O_WRONLY) as volume:
        assert volume.write(buffer, 512, 0) == 512
        with raises(errno.EBADF):
            volume.read(buffer, 512, 0)
    with raises(errno.EBADF):
        volume.write(buffer, 512, 0)
    volume.close()


def test_a_grown_volume_is_seen_by_its_holders(server: ServerProcess, context: Context, volume: Volume) -> None:
    """truncate() on the volume; another context's resize arrives as an event, and is acknowledged."""
    assert volume.truncate(2 * SIZE).size_bytes == 2 * SIZE
    assert volume.size == 2 * SIZE
    put(volume, b"beyond", 2 * SIZE - 6)
    done = threading.Event()

    def grow() -> None:
        with Context(server.socket_path) as other:
            other.truncate_volume("demo", 3 * SIZE)
        done.set()

    events: list[control.Event] = []
    context._on_event = events.append
    poller = select.poll()
    poller.register(context.fileno(), select.POLLIN)
    thread = threading.Thread(target=grow)
    thread.start()
    while not done.is_set():
        poller.poll(50)
        context.poll()
    thread.join()
    assert isinstance(events[0], control.VolumeResized)
    assert volume.size == volume.stat().size_bytes == 3 * SIZE
    with raises(errno.EPERM):
        volume.truncate(SIZE)


# Buffers ----------------------------------------------------------------------------------------------------------


def test_buffers_are_shared_memory_of_any_size(context: Context) -> None:
    """Small ones share a slot, large ones are one run; everything comes back; ENOMEM when there is no more."""
    with raises(errno.EINVAL):
        context.allocate(0)
    first = context.allocate(13)
    assert (first.size, len(first.data)) == (13, 13)
    pool = context._service.pool
    small = [context.allocate(4096) for _ in range(31)]
    assert pool.capacity_slots - pool.free_slots == 2
    large = context.allocate(3 * 65536 + 1)
    assert pool.capacity_slots - pool.free_slots == 6
    with raises(errno.ENOMEM):
        context.allocate(pool.capacity_slots * pool.slot_bytes)
    for number, buffer in enumerate([first, *small, large]):
        buffer.data[:] = bytes([number]) * buffer.size
    assert all(bytes(buffer.data) == bytes([number + 1]) * 4096 for number, buffer in enumerate(small))
    for buffer in (first, *small, large):
        context.deallocate(buffer)
    assert pool.free_slots == pool.capacity_slots
    with pytest.raises(ValueError, match="released"):
        first.data[0] = 1


def test_wrong_buffers_are_efault(server: ServerProcess, context: Context, volume: Volume) -> None:
    """Another context's, a deallocated one, a range outside; deallocating twice."""
    with Context(server.socket_path) as other:
        foreign = other.allocate(4096)
        with raises(errno.EFAULT):
            volume.write(foreign, 4096, 0)
        with raises(errno.EFAULT):
            context.deallocate(foreign)
    buffer = context.allocate(4096)
    for start, length in ((0, 4097), (1, 4096), (-1, 16)):
        with raises(errno.EFAULT):
            volume.read(buffer, length, 0, buffer_offset=start)
    for length, offset in ((0, 0), (-1, 0), (512, -1), (512, 1 << 63)):
        with raises(errno.EINVAL):
            volume.write(buffer, length, offset)
    context.deallocate(buffer)
    with raises(errno.EFAULT):
        volume.write(buffer, 4096, 0)
    with raises(errno.EFAULT):
        context.deallocate(buffer)


def test_a_buffer_in_flight_cannot_be_deallocated(server: ServerProcess, context: Context, volume: Volume) -> None:
    """EBUSY until its completion."""
    buffer = context.allocate(4096)
    server.signal(signal.SIGSTOP)
    completion = volume.aio_write(buffer, 4096, 0)
    with raises(errno.EBUSY):
        context.deallocate(buffer)
    assert completion.error() == errno.EINPROGRESS
    with raises(errno.EINPROGRESS):
        completion.result()
    with raises(errno.EAGAIN):
        completion.wait(0.01)
    server.signal(signal.SIGCONT)
    completion.wait(30)
    assert completion.result() == 4096
    context.deallocate(buffer)


# Data -------------------------------------------------------------------------------------------------------------


def test_reads_across_the_end_are_short_writes_are_refused(volume: Volume) -> None:
    """A write across the end changes nothing."""
    assert len(get(volume, 4096, SIZE - 100)) == 100
    assert get(volume, 512, SIZE) == b""
    assert get(volume, 512, 1 << 40) == b""
    with raises(errno.EFBIG):
        put(volume, b"x" * 4096, SIZE - 100)
    assert get(volume, 100, SIZE - 100) == bytes(100)


def test_parts_of_buffers_and_large_transfers(context: Context, volume: Volume) -> None:
    """buffer_offset on either side, across slots; 700,001 bytes in one call; FUA."""
    data = random.Random(7).randbytes(700_001)
    buffer = context.allocate(800_000)
    buffer.data[77:700_078] = data
    assert volume.write(buffer, 700_001, 333, buffer_offset=77, fua=True) == 700_001
    buffer.data[:] = bytes(800_000)
    assert volume.read(buffer, 700_001, 333, buffer_offset=65_535) == 700_001
    assert bytes(buffer.data[65_535:765_536]) == data
    volume.flush()


Step = tuple[str, int, int, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["write", "read", "discard", "zeroes", "flush", "batch"]),
        st.integers(0, 200_000),
        st.one_of(st.integers(1, 600), st.integers(1, 150_000)),
        st.integers(0, 255),
    ),
    max_size=25,
)


def test_a_volume_is_a_bytearray(context: Context, volume: Volume) -> None:
    """Any sequence of unaligned operations, some in batches, reads back what a bytearray would hold."""
    model = bytearray(200_000)
    volume.discard(0, SIZE)
    buffer = context.allocate(150_000)

    def check(offset: int, length: int, seed: int, operation: str) -> None:
        length = min(length, len(model) - offset)
        if length <= 0:
            return
        if operation == "write":
            data = random.Random(seed).randbytes(length)
            buffer.data[:length] = data
            assert volume.write(buffer, length, offset) == length
            model[offset : offset + length] = data
        elif operation == "read":
            assert volume.read(buffer, length, offset) == length
            assert buffer.data[:length] == model[offset : offset + length]
        elif operation == "flush":
            volume.flush()
        elif operation == "batch":
            check_batch(offset, length, seed)
        else:
            (volume.discard if operation == "discard" else volume.write_zeroes)(offset, length)
            model[offset : offset + length] = bytes(length)

    def check_batch(offset: int, length: int, seed: int) -> None:
        """The range in pieces of 1 KiB and a rest, all in flight at once."""
        data = random.Random(seed).randbytes(length)
        buffer.data[:length] = data
        with context.batch():
            started = [
                volume.aio_write(buffer, min(1024, length - at), offset + at, buffer_offset=at)
                for at in range(0, length, 1024)
            ]
        for completion in started:
            completion.wait(30)
        assert sum(completion.result() for completion in started) == length
        model[offset : offset + length] = data

    @settings(max_examples=60)
    @given(steps)
    def run(sequence: list[Step]) -> None:
        for operation, offset, length, seed in sequence:
            check(offset, length, seed, operation)
        assert volume.read(buffer, 150_000, 0) == 150_000
        assert buffer.data == model[:150_000]

    run()


def test_more_in_flight_than_the_ring_has_entries(context: Context, volume: Volume) -> None:
    """5,000 writes in one batch all end, each callback once; then every byte is there."""
    buffer = context.allocate(5000)
    data = random.Random(3).randbytes(5000)
    buffer.data[:] = data
    seen: list[shm_client.AioCompletion] = []
    with context.batch():
        started = [volume.aio_write(buffer, 1, at, seen.append, buffer_offset=at) for at in range(5000)]
        assert context._service._queue is not None
        assert context._service._queue.waiting
    while not all(completion.done for completion in started):
        context.suspend([completion for completion in started if not completion.done], 30)
    assert len(seen) == len(set(map(id, seen))) == 5000
    assert get(volume, 5000, 0) == data


def test_callbacks_may_call_the_library(context: Context, volume: Volume) -> None:
    """A chain of reads, each started by the callback of the one before, and a synchronous write inside."""
    put(volume, bytes(range(100)), 0)
    buffer = context.allocate(100)
    read: list[int] = []

    def next_one(completion: shm_client.AioCompletion) -> None:
        assert completion.result() == 1
        read.append(buffer.data[0])
        if len(read) < 100:
            volume.aio_read(buffer, 1, len(read), next_one)
        else:
            put(volume, b"end", 200)

    volume.aio_read(buffer, 1, 0, next_one)
    while len(read) < 100:
        context.poll()
    assert read == list(range(100))
    assert get(volume, 3, 200) == b"end"


def test_a_short_wait_is_spent_looking(context: Context, volume: Volume, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing sleeps while the answer is on its way; behind a look in vain waits sleep at once, for a while."""
    slept: list[float | None] = []

    def prepare_sleep() -> bool:
        slept.append(None)
        return sleep()

    sleep = context._service.prepare_sleep
    monkeypatch.setattr(context._service, "prepare_sleep", prepare_sleep)
    monkeypatch.setattr(shm_client, "SPIN_S", 10.0)
    get(volume, 512, 0)
    assert not slept
    context._vain_spins = shm_client.VAIN_SPINS
    while context._vain_spins:
        get(volume, 512, 0)
    assert slept
    slept.clear()
    get(volume, 512, 0)
    assert not slept
    context.looks_first = False
    while not slept:
        get(volume, 512, 0)


def test_looking_in_vain_is_given_up(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of waits that take longer than a look, one in many looks."""
    looks: list[None] = []
    monkeypatch.setattr(shm_client, "SPIN_S", -1.0)
    monkeypatch.setattr(context._service, "has_pending", lambda: bool(looks.append(None)))
    for _ in range(3 * (shm_client.VAIN_SPINS + 1)):
        context._spin()
    assert len(looks) == 3


def test_a_poll_loop_of_ones_own(context: Context, volume: Volume) -> None:
    """fileno() becomes readable for every completion; nothing is missed between poll() and select."""
    buffer = context.allocate(4096)
    poller = select.poll()
    poller.register(context.fileno(), select.POLLIN)
    for _ in range(500):
        completion = volume.aio_read(buffer, 4096, 0)
        while not completion.done:
            assert poller.poll(10_000), "a completion came and the descriptor did not say so"
            context.poll()


# Ends -------------------------------------------------------------------------------------------------------------


def test_closing_a_volume_ends_what_is_in_flight(context: Context) -> None:
    """Every completion ends: done or ECANCELED."""
    volume = context.open("demo")
    buffer = context.allocate(1 << 20)
    with context.batch():
        started = [volume.aio_write(buffer, 1 << 20, 0) for _ in range(50)]
    volume.close()
    assert {completion.error() for completion in started} <= {0, errno.ECANCELED}
    assert buffer.in_flight == 0


def test_a_context_that_goes_frees_its_volumes(server: ServerProcess, context: Context) -> None:
    """Without closing anything: the end of its socket is enough."""
    other = Context(server.socket_path)
    other.open("demo")
    other._service.close()
    context.open("demo").close()
    other.close()


def test_the_servers_death_ends_everything_and_reconnect_begins_anew(server: ServerProcess, context: Context) -> None:
    """kill -9 with requests in flight: ECONNRESET for them and for later calls; acknowledged data is there again."""
    volume = context.open("demo")
    put(volume, b"kept", 4096)
    buffer = context.allocate(4096)
    server.signal(signal.SIGSTOP)
    with context.batch():
        started = [volume.aio_read(buffer, 4096, 0) for _ in range(2000)]
    server.kill()
    started[0].wait(10)
    assert {completion.error() for completion in started} == {errno.ECONNRESET}
    for call in (
        lambda: volume.read(buffer, 1, 0),
        lambda: context.stat_volume("demo"),
        lambda: context.open("demo"),
        lambda: context.allocate(1),
    ):
        with raises(errno.ECONNRESET):
            call()
    with raises(errno.ECONNREFUSED):
        context.reconnect()
    server.start()
    context.reconnect()
    with raises(errno.ECONNRESET):
        volume.flush()
    with context.open("demo") as again:
        assert get(again, 4, 4096) == b"kept"
        with raises(errno.EFAULT):
            again.read(buffer, 1, 0)
        buffer.data[0] = 1
        context.deallocate(buffer)
    volume.close()


def test_a_snapshot_is_opened_to_be_read(server: ServerProcess, context: Context, volume: Volume) -> None:
    """By VOLUME@SNAPSHOT, with its own size and identity, also after the server's death; writing to it is EROFS."""
    put(volume, b"then", 4096)
    context.create_snapshot("demo", "s")
    put(volume, b"now!", 4096)
    context.truncate_volume("demo", 2 * SIZE)
    with raises(errno.EROFS):
        context.open("demo@s")
    with raises(errno.ENOENT):
        context.open("demo@t", os.O_RDONLY)
    snapshot = context.open("demo@s", os.O_RDONLY)
    assert get(snapshot, 4, 4096) == b"then"
    stat = snapshot.stat()
    assert (stat.name, stat.size_bytes, stat.is_read_only, snapshot.size) == ("demo@s", SIZE, True, SIZE)
    assert stat.uuid != volume.stat().uuid
    buffer = context.allocate(4096)
    for call in (
        lambda: snapshot.write(buffer, 1, 0),
        lambda: snapshot.discard(0, 4096),
        lambda: snapshot.write_zeroes(0, 4096),
        lambda: snapshot.truncate(4 * SIZE),
    ):
        with raises(errno.EROFS):
            call()
    with raises(errno.EBUSY), Context(server.socket_path) as other:
        other.remove_snapshot("demo", "s")
    server.kill()
    server.start()
    context.reconnect()
    with context.open("demo@s", os.O_RDONLY) as again:
        assert get(again, 4, 4096) == b"then"
        assert again.stat() == stat
    context.remove_snapshot("demo", "s")


def test_a_server_that_answers_nonsense_is_an_oserror(short_dir: Path) -> None:
    """EPROTO where it speaks garbage, and not a hang where a reply has the wrong kind."""
    fake = FakeServer(short_dir / "fake.sock")
    fake.volumes["demo"] = bytearray(4096)
    with fake.running():
        context = Context(fake.path)
        volume = context.open("demo")
        buffer = context.allocate(512)
        fake.answer_entry = lambda entry: fake.complete(entry[8] + 17, 0, 0)  # type: ignore[method-assign]
        with raises(errno.ECONNRESET):
            volume.read(buffer, 512, 0)
        with raises(errno.EPROTO):
            context.list_volumes()
        context.close()
        fake.answer_control = lambda request: fake.send_raw(b"\x01\x00\x00\x00\xc1")  # type: ignore[method-assign]
        with raises(errno.EPROTO):
            Context(fake.path)
    fake.close()


def test_a_closed_context_says_ebadf(context: Context) -> None:
    context.close()
    context.close()
    for call in (context.list_volumes, context.poll, context.fileno, lambda: context.allocate(1)):
        with raises(errno.EBADF):
            call()


# Paths ------------------------------------------------------------------------------------------------------------


def test_default_paths(monkeypatch: pytest.MonkeyPatch) -> None:
    """CONTRACTS 11, for root, for a user, for a user without a runtime directory, and with --state-dir."""
    assert paths.socket_path("/x") == Path("/x/run/shm.sock")
    assert paths.state_dir("/x") == Path("/x")
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert paths.socket_path() == Path("/run/iscsi-ovs/shm.sock")
    assert paths.state_dir() == Path("/var/lib/iscsi-ovs")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_STATE_HOME", "/home/u/state")
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1000")
    assert paths.state_dir() == Path("/home/u/state/iscsi-ovs")
    assert paths.socket_path() == Path("/run/user/1000/iscsi-ovs/shm.sock")
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert paths.runtime_dir() == Path("/home/u/state/iscsi-ovs/run")
    monkeypatch.delenv("XDG_STATE_HOME")
    monkeypatch.setenv("HOME", "/home/u")
    assert paths.state_dir() == Path("/home/u/.local/state/iscsi-ovs")


def test_records_are_kept_with_a_volume(context: Context, server: ServerProcess) -> None:
    """get_record and put_record: versions, ESTALE, and RecordChanged for who has the volume open elsewhere."""
    events: list[control.Event] = []
    assert context.get_record("demo", "modes") == (0, b"")
    with Context(server.socket_path, on_event=events.append) as other, other.open("demo"):
        answers: list[object] = []
        context._service.put_record("demo", "modes", 0, b"one", answers.append)
        while not events:
            context.poll()
            other.poll()
        while not answers:
            context.poll()
    (event,) = events
    assert isinstance(event, control.RecordChanged)
    assert (event.name, event.record, event.version, event.data) == ("demo", "modes", 1, b"one")
    assert context.get_record("demo", "modes") == (1, b"one")
    with raises(errno.ESTALE):
        context.put_record("demo", "modes", 0, b"two")
    assert context.put_record("demo", "modes", 1, b"two") == 2
    with raises(errno.ENOENT):
        context.get_record("nowhere", "modes")
