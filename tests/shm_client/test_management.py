"""The client library against the real volume server: volumes, opening, records, snapshots."""

from __future__ import annotations

import errno
import os
import select
import threading
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context, Volume
from shm_server.abi import control
from tests.shm_client.calls import SIZE, get, put, raises
from tests.storage.server_process import ServerProcess


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
