"""Targets of a config.toml, from real initiators: several LUNs, portal groups, IPv6, redirection, ACLs, read-only."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs.shm_client import Context
from tests.interop import initiators
from tests.interop.initiators import InitiatorError, run
from tests.interop.serving import IQN_PREFIX, iscsi_ovs
from tests.interop.tgtd import free_port
from tests.storage.server_process import ServerProcess

pytestmark = pytest.mark.interop

TEXT = """\
[portal-group.four]
listen = ["127.0.0.1:{four}"]
[portal-group.six]
tag = 66
listen = ["[::1]:{six}"]
[portal-group.moved]
listen = ["127.0.0.1:{moved}"]
redirect = "127.0.0.1:{four}"
[acl.nobody]
initiators = ["iqn.2020-01.com.example:nobody"]
[lun.one]
[lun.two]
block-size = 4096
[target.disks]
portal-group = ["four", "six", "moved"]
lun.0 = "one"
lun.5 = {{ lun = "two", read-only = true }}
[target.private]
portal-group = "four"
acl = "nobody"
lun.0 = "two"
"""
DISKS = f"{IQN_PREFIX}disks"


class Configured:
    def __init__(self, directory: Path) -> None:
        self.ports = {name: free_port() for name in ("four", "six", "moved")}
        self.server = ServerProcess(directory)
        self.server.start()
        with Context(self.server.socket_path) as context:
            context.create_volume("one", 16 << 20)
            context.create_volume("two", 16 << 20)
        file = directory / "config.toml"
        file.write_text(TEXT.format(**self.ports))
        self.log = directory / "log"
        command = iscsi_ovs("target", "--socket", str(self.server.socket_path), "--config", str(file))
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log)
        assert self.process.stdout is not None
        self.ready = ""
        while "private" not in self.ready:
            assert select.select([self.process.stdout], [], [], 20.0)[0], self.log.read_text()
            chunk = os.read(self.process.stdout.fileno(), 4096)
            assert chunk, self.log.read_text()
            self.ready += chunk.decode()

    def portal(self, name: str) -> str:
        return f"[::1]:{self.ports[name]}" if name == "six" else f"127.0.0.1:{self.ports[name]}"

    def url(self, name: str, lun: int = 0) -> str:
        return f"iscsi://{self.portal(name)}/{DISKS}/{lun}"

    def close(self) -> None:
        self.process.terminate()
        assert self.process.wait(20) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.server.stop()
        assert "Traceback" not in self.log.read_text()


@pytest.fixture(scope="module")
def target(module_dir: Path) -> Iterator[Configured]:
    target = Configured(module_dir)
    yield target
    target.close()


def test_ready_lines(target: Configured) -> None:
    """One for each LUN that is there for everybody."""
    portal = target.portal("four")
    assert target.ready.splitlines() == [
        f"ready iscsi://{portal}/{DISKS}/0",
        f"ready iscsi://{portal}/{DISKS}/5",
        f"ready iscsi://{portal}/{IQN_PREFIX}private/0",
    ]


@pytest.mark.parametrize("portal", ["four", "six"])
def test_discovery(target: Configured, portal: str) -> None:
    """Every portal of what is open to this initiator, and nothing of what is not."""
    said = run("iscsi-ls", f"iscsi://{target.portal(portal)}")
    found = {line.partition("Portal:")[2] for line in said.splitlines() if f"Target:{DISKS} " in line}
    assert found == {f"{target.portal('four')},1", f"{target.portal('six')},66", f"{target.portal('moved')},2"}
    assert "private" not in said


@pytest.mark.parametrize("portal", ["four", "six"])
def test_luns(target: Configured, portal: str) -> None:
    """Each with its own size and block size, and 5 read-only."""
    assert f"Total size:{16 << 20}" in run("iscsi-readcapacity16", target.url(portal))
    assert "LOGICAL BLOCK LENGTH IN BYTES:4096" in run("iscsi-readcapacity16", target.url(portal, 5))
    done = run("qemu-io", "-f", "raw", "-c", "write -P 17 4096 8192", "-c", "read -P 17 4096 8192", target.url(portal))
    assert "wrote 8192/8192" in done
    assert "read 8192/8192" in done
    refused = run("qemu-io", "-f", "raw", "-c", "write -P 17 4096 8192", target.url(portal, 5), codes=(0, 1))
    assert "wrote" not in refused


@pytest.mark.parametrize("program", ["iscsi-inq", "qemu-img"])
def test_a_redirection_is_followed(target: Configured, program: str) -> None:
    """libiscsi, in its own tool and in QEMU, goes where it is sent."""
    arguments = ("info", "-f", "raw") if program == "qemu-img" else ()
    said = run(program, *arguments, target.url("moved"))
    assert "DIRECT_ACCESS" in said or "virtual size: 16 MiB" in said
    assert f"is sent to {target.portal('four')}" in target.log.read_text()


def test_who_is_not_on_the_list(target: Configured) -> None:
    """0202, and the log says who came from where."""
    with pytest.raises(InitiatorError):
        initiators.run("iscsi-inq", f"iscsi://{target.portal('four')}/{IQN_PREFIX}private/0")
    assert "login refused (0202)" in target.log.read_text()
    assert "at 127.0.0.1 may not log in to" in target.log.read_text()
