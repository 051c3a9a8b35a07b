"""SIGHUP under load, with real processes: a LUN comes, one grows, an ACL goes, and another session notices nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.testing.socket_initiator import LoginRefusedError, SocketInitiator
from tests.interop import processes
from tests.interop.serving import IQN_PREFIX, iscsi_ovs
from tests.interop.tgtd import free_port

HOST_A, HOST_B, HOST_C = (f"iqn.2020-01.com.example:{letter}" for letter in "abc")
BLOCKS = 2048  # of 4096 bytes, that the load goes over

TEXT = f"""\
[portal-group.default]
listen = ["127.0.0.1:PORT"]
[acl.friends]
initiators = ["{HOST_A}", "{HOST_B}"]
[lun.busy]
[lun.grows]
[lun.comes]
[target.load]
lun.0 = "busy"
[target.disk]
acl = "friends"
lun.0 = "grows"
"""


class Load(threading.Thread):
    """Verified reads and writes on a session of its own: every answer GOOD, every byte as it was written last."""

    def __init__(self, port: int) -> None:
        super().__init__()
        self.initiator = SocketInitiator("127.0.0.1", port, name=HOST_C)
        self.initiator.login(IQN_PREFIX + "load")
        while self.initiator.command(bytes(6)).status == scsi.CHECK_CONDITION:
            pass
        self.commands = 0
        self.slowest_s = 0.0
        self.failure: BaseException | None = None
        self.is_over = False

    def run(self) -> None:
        chance = random.Random(7143)
        content: dict[int, bytes] = {}
        try:
            while not self.is_over:
                block = chance.randrange(BLOCKS)
                lba = (block * 8).to_bytes(4, "big")
                begun = time.monotonic()
                if chance.random() < 0.5:
                    content[block] = chance.randbytes(4096)
                    result = self.initiator.command(b"\x2a\0" + lba + b"\0\0\x08\0", write=content[block])
                else:
                    result = self.initiator.command(b"\x28\0" + lba + b"\0\0\x08\0", read=4096)
                    assert bytes(result.data) == content.get(block, bytes(4096)), f"block {block}"
                self.slowest_s = max(self.slowest_s, time.monotonic() - begun)
                assert result.status == scsi.GOOD, (result.status, result.sense)
                self.commands += 1
        except BaseException as error:  # told by stop()
            self.failure = error

    def until_more(self, count: int = 200) -> None:
        wanted = self.commands + count
        processes.wait_until(lambda: self.commands >= wanted or self.failure, 20.0, f"{count} commands more")

    def stop(self) -> None:
        self.is_over = True
        self.join(20)
        self.initiator.close()
        if self.failure is not None:
            raise self.failure


class Served:
    """``iscsi-ovs serve --config``, with a file that can be changed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.file = directory / "config.toml"
        self.text = TEXT.replace("PORT", str(self.port))
        self.file.write_text(self.text)
        self.log = directory / "log"
        options = ["--state-dir", str(directory / "s"), "--config", str(self.file)]
        for volume in ("busy=16M", "grows=16M", "comes=16M"):
            options += ["--volume", volume]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                iscsi_ovs("serve", *options), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=log
            )
        processes.wait_until(self._is_ready, 20.0, "it serves")

    def _is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return "volume server attached" in self.log.read_text()

    def change(self, old: str, new: str) -> None:
        assert self.text.count(old) == 1
        self.text = self.text.replace(old, new)
        self.file.write_text(self.text)

    def hang_up(self) -> None:
        """SIGHUP to serve, and wait until the target has acted on it."""
        count = self.log.read_text().count("reloaded: ")
        self.process.send_signal(signal.SIGHUP)
        processes.wait_until(lambda: self.log.read_text().count("reloaded: ") > count, 10.0, self.log.read_text())

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = iscsi_ovs(*arguments, "--state-dir", str(self.directory / "s"))
        return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)

    def log_in(self, name: str, target: str = "disk") -> SocketInitiator:
        initiator = SocketInitiator("127.0.0.1", self.port, name=name)
        try:
            initiator.login(IQN_PREFIX + target)
        except BaseException:
            initiator.close()
            raise
        return initiator

    def close(self) -> None:
        members = processes.tree(self.process.pid)
        self.process.terminate()
        code = self.process.wait(15)
        processes.kill_all([pid for pid in members if not processes.wait_gone(pid, 2.0)])
        assert code == 0
        assert "Traceback" not in self.log.read_text(), self.log.read_text()


@pytest.fixture
def served(short_dir: Path) -> Iterator[Served]:
    served = Served(short_dir)
    yield served
    served.close()


def attentions(initiator: SocketInitiator, lun: int = 0) -> list[tuple[int, int] | None]:
    heard = []
    while (result := initiator.command(bytes(6), lun=lun)).status == scsi.CHECK_CONDITION:
        heard.append(result.additional_sense)
    return heard


def test_reload_under_load(served: Served) -> None:
    """What is reloaded is there at once; the load's session has no error, no attention, and no hiccup over 1 s."""
    load = Load(served.port)
    load.start()
    disk = served.log_in(HOST_A)
    attentions(disk)
    load.until_more()

    served.change('lun.0 = "grows"', 'lun.0 = "grows"\nlun.1 = "comes"')
    served.hang_up()
    processes.wait_until(lambda: (0x3F, 0x0E) in attentions(disk), 10.0, "the session hears of the new LUN")
    assert attentions(disk, 1) == [(0x29, 0x00)]
    assert disk.command(bytes.fromhex("2a000000000000000800"), write=b"n" * 4096, lun=1).status == scsi.GOOD

    assert served.run("volume", "resize", "grows", "32M").returncode == 0
    assert attentions(disk) == [(0x2A, 0x09)]
    capacity = disk.command(b"\x25" + bytes(9), read=8).data
    assert int.from_bytes(bytes(capacity[:4]), "big") == (32 << 20) // 512 - 1

    with pytest.raises(LoginRefusedError) as refused:
        served.log_in(HOST_C)
    assert refused.value.status == (2, 2)
    served.change('acl = "friends"\n', "")
    said = served.run("reload")
    assert (said.returncode, said.stdout) == (0, f"target {IQN_PREFIX}disk changed\n")
    served.log_in(HOST_C).close()
    assert attentions(disk) == []

    load.until_more()
    load.stop()
    assert load.slowest_s < 1.0
    disk.close()


def test_what_can_not_be_obeyed_is_refused_whole(served: Served) -> None:
    """Exit code 2 and the error's place; nothing is different, also where the first half could have been done."""
    with served.log_in(HOST_A) as disk:
        attentions(disk)
        served.change('lun.0 = "grows"', 'lun.0 = "grows"\nlun.1 = "comes"\nlun.2 = "missing"')
        said = served.run("reload")
        assert (said.returncode, said.stdout) == (2, "")
        assert f"{served.file}: target.disk.lun.2: there is no lun 'missing'" in said.stderr
        assert attentions(disk) == []
        assert disk.command(bytes(6), lun=1).additional_sense == (0x25, 0x00)


def test_after_kill_9_of_the_target(served: Served) -> None:
    """The next one serves the file as it is, at the same portal, and can be reloaded."""
    victim = next(pid for pid in processes.tree(served.process.pid) if "target" in processes.command_line(pid)[:4])
    served.change("[target.load]", "[target.renamed]")
    processes.kill_all([victim])

    def log_in() -> bool:
        try:
            served.log_in(HOST_A, "renamed").close()
        except ConnectionRefusedError:
            return False
        except LoginRefusedError as refused:
            if refused.status != (3, 1):  # else it has not reached the volume server yet
                raise
            return False
        return True

    processes.wait_until(log_in, 20.0, "the next target")
    served.change("[target.renamed]", "[target.load]")
    assert served.run("reload").returncode == 0
    served.log_in(HOST_A, "load").close()


def test_reload_without_a_target(short_dir: Path) -> None:
    """Exit code 5, and where it was looked for."""
    command = [sys.executable, "-m", "iscsi_ovs", "reload", "--state-dir", str(short_dir)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert said.returncode == 5
    assert f"no target with --config at {short_dir}/run/target.sock: No such file" in said.stderr
