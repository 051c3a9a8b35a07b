"""The control plane: who may attach, what management answers, which events go to whom, how it begins and ends."""

from __future__ import annotations

import errno
import os
import re
import resource
import socket
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shm_server import locks, manager, requests
from shm_server.abi import control, layout
from shm_server.server import Server
from shm_server.stores.file import FileStores
from tests.shm_server.abi_client import AbiClient, RefusedError
from tests.shm_server.conftest import ROOT, ServerProcess

Connect = Callable[..., AbiClient]
Start = Callable[..., ServerProcess]


def refused(number: int, words: str = "") -> Any:
    """``with refused(errno.EBUSY, "held by"):`` the server answers so."""
    return pytest.raises(RefusedError, match=rf"\[Errno {number}\] .*{words}")


# Greeting and attaching


def test_hello_says_who_serves(server: ServerProcess, connect: Connect) -> None:
    """The version, the pid, the pool, and an instance that is new at each start."""
    first = connect(server).welcome
    assert (first.version, first.pid, first.pool) == (layout.ABI_VERSION, server.process.pid, str(server.pool))
    server.stop()
    server.start()
    assert connect(server).welcome.instance != first.instance


def test_another_version_is_refused_with_both_numbers(server: ServerProcess, connect: Connect) -> None:
    """And that connection is closed."""
    client = connect(server, hello=False)
    with refused(errno.EPROTONOSUPPORT, "version 9, this server speaks 1"):
        client.call(control.Hello(client.id(), 9))
    assert client.is_closed_by_server()


def test_nothing_goes_before_hello(server: ServerProcess, connect: Connect) -> None:
    """A request before Hello is refused with id 0."""
    client = connect(server, hello=False)
    with refused(errno.EPROTO, "List before Hello"):
        client.call(control.List(1))
    assert client.is_closed_by_server()


def test_the_key_off_refuses_attaching_by_name(start_server: Start, connect: Connect) -> None:
    """By default attaching is off: the sentence names the key and the file; management works."""
    server = start_server(filesystem={"fs_enable_shm_interface": False})
    client = connect(server)
    words = f"filesystem.fs_enable_shm_interface to true in {re.escape(str(server.config))}"
    with refused(errno.EPERM, words):
        client.attach()
    assert client.create().name == "demo"


def test_a_segment_is_a_share_of_the_region(start_server: Start, connect: Connect) -> None:
    """A wish is cut to 3/4 of the region, then to what is left; when nothing is left the sentence says so."""
    server = start_server(shm_interface={"shm_region_size": 1 << 20})
    first, second, third = connect(server), connect(server), connect(server)
    assert first.attach(1 << 30).slot_count == 12
    assert second.attach(1 << 30).slot_count == 4
    with refused(errno.ENOMEM, "shm_region_size"):
        third.attach(1)
    second.close()
    third.create()  # whatever the order of the two ends, the server has seen the first by its next turns
    assert third.attach(1).slot_count == 1


@pytest.mark.parametrize("wish", [(0, 64), (-5, 64), (65536, 15), (65536, 100), (65536, 16384), (65536, 0)])
def test_impossible_wishes_are_refused(server: ServerProcess, connect: Connect, wish: tuple[int, int]) -> None:
    """Sizes that can't be are EINVAL, and the client may try again."""
    client = connect(server)
    with refused(errno.EINVAL):
        client.attach(*wish)
    client.attach()
    with refused(errno.EALREADY):
        client.attach()


def test_opening_needs_an_attachment(server: ServerProcess, connect: Connect) -> None:
    """A handle without rings would be of no use."""
    client = connect(server)
    client.create()
    with refused(errno.ENOTCONN):
        client.open()


def test_another_uid_is_refused_unless_listed(start_server: Start) -> None:
    """SO_PEERCRED decides, and the sentence names the key."""
    if os.getuid() != 0:
        pytest.skip("needs root to be somebody else")
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]);"
        "s.sendall(bytes.fromhex(sys.argv[2])); print(s.recv(999))"
    )
    hello = control.encode(control.Hello(1, layout.ABI_VERSION)).hex()
    for uids, words in (([1], "shm_server.allowed_uids"), ([65534], "Welcome")):
        directory = Path("/tmp") / f"ovs-uid-{os.getpid()}-{len(uids)}-{uids[0]}"
        directory.mkdir(mode=0o755)
        try:
            server = start_server(directory, shm_server={"allowed_uids": uids})
            server.pool.chmod(0o755)
            command = [sys.executable, "-c", script, str(server.socket_path), hello]
            result = subprocess.run(command, capture_output=True, text=True, cwd="/", check=False)
            assert words in result.stdout, result.stderr
            server.stop()
        finally:
            subprocess.run(["rm", "-rf", str(directory)], check=True)


# Management


def test_volumes_are_made_listed_grown_and_removed(server: ServerProcess, connect: Connect) -> None:
    """Each has a UUID of its own, a size rounded up to 4096, and a generation that counts changes of size."""
    client = connect(server)
    first, second = client.create("b", 4096), client.create("a.b-c", 5000)
    assert (first.size_bytes, second.size_bytes) == (4096, 8192)
    assert first.uuid != second.uuid
    assert re.fullmatch("[0-9a-f]{32}", first.uuid)
    assert client.call(control.List(client.id())).infos == [second, first]
    grown = client.call(control.Resize(client.id(), "b", 1 << 20)).info
    assert (grown.size_bytes, grown.generation, grown.uuid) == (1 << 20, 2, first.uuid)
    assert client.call(control.Stat(client.id(), "b")).info == grown
    client.call(control.Remove(client.id(), "b"))
    assert [info.name for info in client.call(control.List(client.id())).infos] == ["a.b-c"]
    assert client.create("b", 4096).uuid != first.uuid
    assert sorted(os.listdir(server.pool / "volumes")) == ["a.b-c.raw", "b.raw"]


def test_a_list_of_all_that_there_can_be_is_one_message() -> None:
    """As many volumes as a pool can have, and as many handles as eight clients, each with the longest words: or no
    target could attach to such a pool any more."""
    words = "€" * requests.MAX_WORDS
    info = control.VolumeInfo("a" * 63, "f" * 32, 2**62, 2**62, 2**31, True, False, words, 2**20, 65535, False, False)
    handle = control.HandleInfo(2**31, "a" * 63, "rw", "o" * 40, words, 2**22, 2**60, 2**60, 2**60, 2**60, 2**16)
    for message in (
        control.Volumes(2**31, [info] * manager.MAX_VOLUMES),
        control.Handles(2**31, [handle] * 8 * requests.MAX_HANDLES),
    ):
        assert control.AnswerReader().feed(control.encode(message)) == [message]


def test_management_errors_are_those_of_the_manual(start_server: Start, connect: Connect) -> None:
    """EEXIST, EINVAL with the rule, EFBIG, ENOENT, EPERM, each with a sentence."""
    client = connect(start_server(volume_manager={"max_volume_size": "1GiB"}))
    client.create()
    for name in ("", "Demo", ".a", "-a", "a" * 64, "a/b", "a b", "ä", "a\n", "../a"):
        with refused(errno.EINVAL, re.escape("[a-z0-9][a-z0-9.-]{0,62}")):
            client.create(name)
    client.create("a" * 63)
    with refused(errno.EEXIST, "demo"):
        client.create()
    for size in (0, -4096):
        with refused(errno.EINVAL):
            client.create("other", size)
    with refused(errno.EFBIG, "max_volume_size"):
        client.create("other", (1 << 30) + 1)
    for request in (control.Stat, control.Remove):
        with refused(errno.ENOENT, "there is no volume gone"):
            client.call(request(client.id(), "gone"))
    with refused(errno.ENOENT):
        client.call(control.Resize(client.id(), "gone", 4096))
    with refused(errno.EPERM, "shrink"):
        client.call(control.Resize(client.id(), "demo", 4096))
    with refused(errno.EFBIG):
        client.call(control.Resize(client.id(), "demo", 1 << 40))
    assert client.call(control.Resize(client.id(), "demo", 1 << 24)).info.generation == 1
    client.attach()
    with refused(errno.ENOENT):
        client.open("gone")
    with refused(errno.EINVAL, "access"):
        client.open("demo", "rwx")
    with refused(errno.EBADF):
        client.close_handle(77)


def test_a_creation_that_fails_leaves_nothing(server: ServerProcess, connect: Connect) -> None:
    """A file in the way is refused by its path and not touched."""
    path = server.pool / "volumes" / "demo.raw"
    path.write_text("somebody's")
    client = connect(server)
    with refused(errno.EEXIST, r"demo\.raw exists"):
        client.create()
    assert path.read_text() == "somebody's"
    path.unlink()
    client.create()


def test_one_owner_writes_everybody_reads(server: ServerProcess, connect: Connect) -> None:
    """A second writer gets EBUSY with the holder's words, unless it names the same owner; readers always may."""
    first, second = connect(server, words="iscsi target pid 123"), connect(server)
    first.create()
    first.attach()
    second.attach()
    one = first.open("demo", "rw", "token")
    assert second.call(control.Stat(second.id(), "demo")).info.held == "iscsi target pid 123"
    for owner in ("", "another"):
        with refused(errno.EBUSY, "volume demo is held by iscsi target pid 123"):
            second.open("demo", "w", owner)
    reader = second.open("demo", "r")
    two = second.open("demo", "rw", "token")
    first.close_handle(one.handle)
    third = connect(server)
    third.attach()
    with refused(errno.EBUSY):
        third.open("demo", "rw")
    second.close_handle(two.handle)
    third.open("demo", "rw")
    second.close_handle(reader.handle)
    assert one.handle != 0
    # Without a token every handle is an owner of its own.
    with refused(errno.EBUSY):
        third.open("demo", "rw")


def test_a_held_volume_is_not_removed(server: ServerProcess, connect: Connect, demo: AbiClient) -> None:
    """EBUSY; by force the holder is asked, and when it lets go the volume is gone."""
    other = connect(server, words="somebody")
    with refused(errno.EBUSY, "held by pid"):
        other.call(control.Remove(other.id(), "demo"))
    request = control.Remove(other.id(), "demo", force=True)
    other.send(request)
    event = demo.event()
    assert isinstance(event, control.ReleaseRequested)
    assert event.name == "demo"
    demo.close_handle(demo.handle)
    assert isinstance(other.reply(request.id), control.Done)
    with refused(errno.ENOENT):
        other.call(control.Stat(other.id(), "demo"))


def test_force_ends_with_the_holder_too(server: ServerProcess, connect: Connect, demo: AbiClient) -> None:
    """A holder that dies instead of answering has let go as well."""
    other = connect(server)
    request = control.Remove(other.id(), "demo", force=True)
    other.send(request)
    assert isinstance(demo.event(), control.ReleaseRequested)
    demo.close()
    assert isinstance(other.reply(request.id), control.Done)


def test_force_gives_up_on_a_stubborn_holder(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the limit it is EBUSY with the holder's words, and the holder goes on."""
    monkeypatch.setattr("shm_server.manager.RELEASE_LIMIT_S", 0.05)
    server = in_process()
    holder, other = connect(server, words="stubborn"), connect(server)
    holder.create()
    holder.attach()
    holder.open()
    with refused(errno.EBUSY, "held by stubborn"):
        other.call(control.Remove(other.id(), "demo", force=True))
    assert holder.write(0, b"x" * 512) == 512


def test_events_go_to_subscribers_and_holders(server: ServerProcess, connect: Connect) -> None:
    """Created, removed: subscribers. Resized: holders too. Sequence numbers count for each client apart."""
    subscriber, holder, other = connect(server), connect(server), connect(server)
    assert subscriber.call(control.Subscribe(subscriber.id())).infos == []
    info = other.create()
    assert subscriber.event() == control.VolumeCreated(1, info)
    holder.attach()
    holder.open()
    request = control.Resize(other.id(), "demo", 1 << 25)
    other.send(request)
    event = holder.event()
    assert isinstance(event, control.VolumeResized)
    assert (event.sequence, event.info.size_bytes, event.info.generation) == (1, 1 << 25, 2)
    told = subscriber.event()
    assert (told.sequence, told.info) == (2, event.info)
    assert holder.write((1 << 25) - 512, b"y" * 512) == 512  # the new size is served before anybody acknowledged
    holder.send(control.Ack(event.sequence))
    assert other.reply(request.id).info.size_bytes == 1 << 25
    holder.close_handle(holder.handle)
    other.call(control.Remove(other.id(), "demo"))
    assert subscriber.event() == control.VolumeRemoved(3, "demo", info.uuid)
    assert holder.events == []


def test_a_holder_that_never_acknowledges_holds_nobody_up(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reply to Resize comes after the limit; whoever holds and resizes itself does not wait for itself."""
    monkeypatch.setattr("shm_server.manager.ACK_LIMIT_S", 0.05)
    server = in_process()
    holder, other = connect(server), connect(server)
    holder.create()
    holder.attach()
    holder.open()
    other.call(control.Resize(other.id(), "demo", 1 << 25))
    monkeypatch.setattr("shm_server.manager.ACK_LIMIT_S", 1000)
    holder.call(control.Resize(holder.id(), "demo", 1 << 26))


def test_counters_say_what_was_moved(server: ServerProcess, connect: Connect) -> None:
    """ListHandles: bytes really moved by READ and WRITE, per handle, of every client."""
    client = connect(server, words="counter")
    client.create("demo", 1 << 20)
    client.attach()
    client.open("demo", "rw", "token")
    client.write(0, b"x" * 1000)
    client.write(4096, b"x" * 4096, flags=layout.FLAG_FUA)
    client.read((1 << 20) - 512, 4096)
    client.read(1 << 20, 4096)
    client.do(layout.Opcode.DISCARD, 0, 1 << 20)
    with pytest.raises(OSError):
        client.write(1 << 20, b"x" * 512)
    (info,) = connect(server).call(control.ListHandles(5)).infos
    assert (info.volume, info.access, info.owner, info.words, info.pid) == (
        "demo",
        "rw",
        "token",
        "counter",
        os.getpid(),
    )
    assert (info.reads, info.read_bytes, info.writes, info.written_bytes) == (2, 512, 2, 5096)
    assert info.in_flight == 0


def test_concurrent_changes_of_one_name_take_turns(server: ServerProcess, connect: Connect) -> None:
    """Two hundred creates and removes in flight at once leave what the last of them says, and no error but theirs."""
    client = connect(server)
    requests: list[control.Message] = []
    for number in range(100):
        requests += [control.Create(2 * number + 1000, "demo", 4096), control.Remove(2 * number + 1001, "demo")]
    client.socket.sendall(b"".join(map(control.encode, requests)))
    for request in requests:
        client.reply(request.id)
    assert client.call(control.List(client.id())).infos == []


# Beginning and end


def test_sigterm_ends_with_0_and_leaves_no_socket(server: ServerProcess, demo: AbiClient) -> None:
    """The clients see the end of the stream, the socket is gone, the exit code is 0."""
    demo.write(0, b"x" * 512)
    assert server.stop() == 0
    assert not server.socket_path.exists()
    assert demo.is_closed_by_server()


def test_a_second_server_on_the_pool_is_refused_by_pid(server: ServerProcess, tmp_path: Path) -> None:
    """Whatever socket it would use; the first goes on."""
    command = [sys.executable, "-m", "shm_server", "--config", str(server.config), "--socket", str(tmp_path / "x.sock")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"pid {server.process.pid}" in result.stderr
    assert str(server.pool) in result.stderr
    with AbiClient(server.socket_path) as client:
        client.create()


def test_a_living_socket_is_not_taken_a_dead_one_is(start_server: Start, tmp_path: Path) -> None:
    """A second pool on the first's socket path is refused; after kill -9 the path is taken over."""
    first = start_server(tmp_path / "one")
    second = tmp_path / "two"
    second.mkdir()
    config = second / "vpool.json"
    config.write_text(first.config.read_text().replace(str(first.pool), str(second / "pool")))
    command = [sys.executable, "-m", "shm_server", "--config", str(config), "--socket", str(first.socket_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert f"pid {first.process.pid}" in result.stderr
    first.kill()
    assert first.socket_path.exists()
    first.start()
    with AbiClient(first.socket_path) as client:
        client.create()


def test_somebody_elses_socket_or_file_is_left_alone(tmp_path: Path) -> None:
    """A path where another program listens, or that is no socket, is refused."""
    path = tmp_path / "s"
    path.write_text("text")
    with pytest.raises(OSError, match="not a socket"):
        locks.listen(path, is_public=False)
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        with pytest.raises(OSError, match="somebody is listening"):
            locks.listen(path, is_public=False)
    taken = locks.listen(path, is_public=False)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    taken.close()


def test_an_overlong_socket_path_is_refused_with_its_length(tmp_path: Path) -> None:
    """A Unix socket's path has at most 107 bytes."""
    with pytest.raises(OSError, match="at most 107"):
        locks.listen(tmp_path / ("x" * 108), is_public=False)


def test_a_wrong_configuration_exits_with_2(tmp_path: Path) -> None:
    """The sentence is on standard error."""
    config = tmp_path / "vpool.json"
    config.write_text('{"file_system": {}}')
    command = [sys.executable, "-m", "shm_server", "--config", str(config)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 2
    assert "unknown key file_system; the nearest known one is filesystem" in result.stderr


def test_two_servers_live_side_by_side(start_server: Start, connect: Connect, tmp_path: Path) -> None:
    """Same volume name, different bytes."""
    clients = []
    for name in ("one", "two"):
        client = connect(start_server(tmp_path / name))
        client.create()
        client.attach()
        client.open()
        client.write(0, name.encode() * 100)
        clients.append(client)
    assert [client.read(0, 3) for client in clients] == [b"one", b"two"]


def test_an_unfinished_creation_is_undone_at_the_next_start(server: ServerProcess, connect: Connect) -> None:
    """What a crash left half made is removed, its name is free."""
    connect(server).create("whole", 4096)
    server.kill()
    database = sqlite3.connect(server.pool / "catalogue.sqlite")
    columns = "(name, uuid, size_bytes, generation, state)"
    database.execute(f"INSERT INTO volumes {columns} VALUES ('half', 'ff', 4096, 1, 'creating')")
    database.commit()
    database.close()
    (server.pool / "volumes" / "half.raw").write_bytes(b"")
    server.start()
    client = connect(server)
    assert [info.name for info in client.call(control.List(client.id())).infos] == ["whole"]
    assert not (server.pool / "volumes" / "half.raw").exists()
    client.create("half", 4096)


def test_a_volume_that_could_not_be_removed_is_there_after_a_restart(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """It is listed and can be written to, so it is no volume that the next start may remove."""

    def fail(*_: object) -> None:
        raise OSError(errno.EIO, "the directory can't be written")

    client = connect(in_process())
    client.create()
    with monkeypatch.context() as patch:
        patch.setattr(FileStores, "remove", fail)
        with refused(errno.EIO, "can't be written"):
            client.call(control.Remove(client.id(), "demo"))
    client.attach()
    client.open()
    client.write(0, b"x" * 512)
    database = sqlite3.connect(tmp_path / "pool" / "catalogue.sqlite")
    assert database.execute("SELECT name, state FROM volumes").fetchall() == [("demo", "ready")]
    database.close()


def test_memory_and_null_stores_serve_too(start_server: Start, connect: Connect, tmp_path: Path) -> None:
    """Memory keeps until the end of the process; null reads zeros."""
    for store, expected in (("memory", b"x" * 512), ("null", bytes(512))):
        server = start_server(tmp_path / store, shm_server={"store": store})
        client = connect(server)
        client.create()
        client.attach()
        client.open()
        client.write(4096, b"x" * 512)
        client.flush()
        assert client.read(4096, 512) == expected
        server.stop()
        server.start()
        assert len(connect(server).call(control.List(9)).infos) == (store == "null")


def test_clients_and_handles_are_bounded(
    in_process: Callable[..., Server], connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One more than the limit is refused with the limit in the sentence."""
    monkeypatch.setattr("shm_server.server.MAX_CLIENTS", 2)
    monkeypatch.setattr("shm_server.requests.MAX_HANDLES", 2)
    server = in_process()
    client = connect(server)
    client.create()
    client.attach()
    client.open("demo", "r")
    client.open("demo", "r")
    with refused(errno.EMFILE, "2 handles"):
        client.open("demo", "r")
    connect(server)
    third = connect(server, hello=False)
    with refused(errno.EAGAIN, "2 clients"):
        third.reply(0)


def test_words_are_one_short_line(server: ServerProcess, connect: Connect, demo: AbiClient) -> None:
    """What a client says of itself can't forge log lines."""
    client = connect(server, words="evil\n2026 shm-server ERROR " + "x" * 1000)
    client.create("other")
    client.attach()
    client.open("other")
    held = client.call(control.Stat(client.id(), "other")).info.held
    assert held is not None
    assert held.startswith("evil?2026")
    assert len(held) == 200


def test_a_server_out_of_descriptors_recovers(server: ServerProcess, demo: AbiClient) -> None:
    """A client that can't be accepted waits; those that are there are served; later it is accepted."""
    limits = resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (server.open_files(), limits[1]))
    with AbiClient(server.socket_path, hello=False) as late:
        while "can't accept a client" not in server.log():
            assert demo.read(0, 512) == bytes(512)
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, limits)
        assert late.call(control.Hello(late.id(), layout.ABI_VERSION)).pid == server.process.pid


def test_a_server_starts_and_ends_without_leaking(server: ServerProcess) -> None:
    """A hundred clients that attach, write and go leave no descriptor behind."""
    with AbiClient(server.socket_path) as client:
        client.create()
    before = server.open_files()
    for _ in range(100):
        with AbiClient(server.socket_path) as client:
            client.attach(65536, 16)
            client.open()
            client.write(0, b"x" * 512)
    with AbiClient(server.socket_path) as client:
        client.create("other")
        assert server.open_files() <= before + 2
    assert threading.active_count() < 10
