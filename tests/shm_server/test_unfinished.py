"""A volume that its maker has not finished goes with it, and one that is finished stays."""

from __future__ import annotations

import errno
from collections.abc import Callable

import pytest

from shm_server import manager
from shm_server.abi import control
from shm_server.server import Server
from shm_server.volumes.catalog import Catalog
from tests.shm_server.abi_client import AbiClient, RefusedError
from tests.shm_server.conftest import ServerProcess

Connect = Callable[..., AbiClient]


def begin(client: AbiClient, name: str = "half") -> None:
    """With something in it, and a snapshot."""
    client.call(control.Create(client.id(), name, 1 << 20, is_whole=False))
    client.attach()
    client.open(name)
    client.call(control.CreateSnapshot(client.id(), name, "s"))


def names(client: AbiClient) -> list[str]:
    return [volume.name for volume in client.call(control.List(client.id())).infos]


def await_removal(watcher: AbiClient) -> None:
    while not isinstance(event := watcher.event(), control.VolumeRemoved) or event.name != "half":
        pass


@pytest.mark.parametrize("is_open", [False, True])
def test_it_goes_with_its_maker(server: ServerProcess, connect: Connect, is_open: bool) -> None:
    """Whose process was killed, say; and its name is free."""
    watcher, maker = connect(server), connect(server)
    watcher.call(control.Subscribe(watcher.id()))
    if is_open:
        begin(maker)
    else:
        maker.call(control.Create(maker.id(), "half", 1 << 20, is_whole=False))
    assert names(watcher) == ["half"]
    maker.socket.close()
    await_removal(watcher)
    assert names(watcher) == []
    assert list((server.pool / "volumes").iterdir()) == []
    watcher.create("half")


def test_it_goes_with_the_server(server: ServerProcess, connect: Connect) -> None:
    """Killed; its files and layers go at the next start."""
    begin(connect(server))
    server.kill()
    server.start()
    assert names(connect(server)) == []
    assert list((server.pool / "volumes").iterdir()) == []


def test_it_is_finished_by_its_maker_alone(server: ServerProcess, connect: Connect) -> None:
    """Once; then it outlives both."""
    maker, other = connect(server), connect(server)
    begin(maker)
    finish = control.Finish(1000, "half")
    with pytest.raises(RefusedError) as caught:
        other.call(finish)
    assert caught.value.errno == errno.EINVAL
    with pytest.raises(RefusedError) as caught:
        other.call(control.Clone(1001, "half", "s", "clone"))
    assert caught.value.errno == errno.ENOENT
    assert maker.call(finish).info.name == "half"
    with pytest.raises(RefusedError):
        maker.call(finish)
    maker.socket.close()
    other.call(control.Clone(1002, "half", "s", "clone"))
    server.kill()
    server.start()
    assert names(connect(server)) == ["clone", "half"]


def test_another_of_its_name_stays(server: ServerProcess, connect: Connect) -> None:
    """Its maker removed it, and somebody else has made one."""
    maker, other = connect(server), connect(server)
    maker.call(control.Create(maker.id(), "half", 1 << 20, is_whole=False))
    maker.call(control.Remove(maker.id(), "half"))
    other.create("half")
    other.call(control.Subscribe(other.id()))
    maker.socket.close()
    other.create("next")
    assert names(other) == ["half", "next"]


def test_who_holds_it_keeps_it(
    in_process: Callable[..., Server],
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whoever has it open, and does not let go when asked, does not lose it; nor at the next start."""
    monkeypatch.setattr(manager, "RELEASE_LIMIT_S", 0.05)
    server = in_process()
    maker, holder = connect(server), connect(server)
    maker.call(control.Create(maker.id(), "half", 1 << 20, is_whole=False))
    holder.attach()
    holder.open("half")
    maker.socket.close()
    while not isinstance(holder.event(), control.ReleaseRequested):
        pass
    while "a volume that was not finished stays" not in caplog.text:
        holder.call(control.Stat(holder.id(), "half"))
    catalog = Catalog(server._settings.pool / "catalogue.sqlite")
    assert ([each.name for each in catalog.load()], catalog.unfinished()) == (["half"], [])
    catalog.close()
