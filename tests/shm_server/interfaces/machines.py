"""A server with two machines on it, one that lies and one that must not notice."""

from __future__ import annotations

from pathlib import Path

from iscsi_ovs.shm_client import Context
from tests.shm_server.conftest import ServerProcess
from tests.shm_server.vhost_front_end import IN, OK, OUT, FrontEnd

MIB = 1 << 20


class Machines:
    """A server with the volumes "bad" and "good", each exported; a machine runs on "good" all the time."""

    def __init__(self, server: ServerProcess, directory: Path) -> None:
        self.server = server
        self.bad_path = directory / "bad.sock"
        self.context = Context(server.socket_path)
        for name in ("bad", "good"):
            self.context.create_volume(name, 16 * MIB)
            self.context.export_volume(name, directory / f"{name}.sock")
        self.good = FrontEnd(directory / "good.sock").setup()
        self._round = 0

    def bad(self, kind: type[FrontEnd] = FrontEnd, *, is_sealed: bool = False) -> FrontEnd:
        front_end = kind(self.bad_path)
        return (front_end.seal() if is_sealed else front_end).setup()

    def others_go_on(self) -> None:
        """The other machine writes and reads, and the server answers."""
        self._round = (self._round + 1) % 256
        data = bytes([self._round]) * 512
        assert self.good.request(OUT, self._round, data)[0] == OK
        assert self.good.request(IN, self._round, read_bytes=512) == (OK, data)
        assert self.context.stat_volume("bad").size_bytes == 16 * MIB

    def close(self) -> None:
        self.good.close()
        self.context.close()


def loses_its_device(front_end: FrontEnd) -> None:
    try:
        while True:
            front_end.receive()
    except EOFError:
        pass
