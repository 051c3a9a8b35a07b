"""The Linux kernel as initiator: discovery, login, a file system, and the death of the volume server under it."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from iscsi_ovs import shm_client
from tests.guest.console import GuestResult
from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop.serving import IQN_PREFIX, Serve

pytestmark = [pytest.mark.guest, pytest.mark.serial, pytest.mark.timeout(150)]

MIB = 1 << 20
IQN = f"{IQN_PREFIX}disk"
TREE = Path("/usr/share/zoneinfo")  # many small files, links among them, on every Debian
if not TREE.is_dir():
    TREE = Path("/usr/share/perl5")


def serve_in(network: GuestNetwork, directory: Path, size: str) -> Serve:
    return Serve(directory / "s", {"disk": size}, portal=f"{TARGET_ADDRESS}:3260", prefix=network.prefix)


def passed(result: GuestResult, guest: Guest, serve: Serve) -> None:
    """The script ran to its end, and the guest's kernel saw no I/O error."""
    assert result.code == 0, f"{guest.tail()}\n{serve.log_tail()}"
    assert result.io_errors() == []


def checksum_on_the_server(serve: Serve, volume: str) -> str:
    """The whole volume's bytes as a client of the volume server sees them: shared memory, no iSCSI."""
    digest = hashlib.sha256()
    with shm_client.Context(state_dir=serve.state_dir) as context, context.open(volume, os.O_RDONLY) as opened:
        buffer = context.allocate(MIB)
        for offset in range(0, opened.size, MIB):
            length = opened.read(buffer, min(MIB, opened.size - offset), offset)
            digest.update(buffer.data[:length])
    return digest.hexdigest()


FILE_SYSTEM = f"""
discover {TARGET_ADDRESS} | tee /run/found
grep -q '^{TARGET_ADDRESS}:3260,1 {IQN}$' /run/found
login {IQN}
disk=$(disk_of {IQN})
report bytes $(blockdev --getsize64 $disk)
mkfs.ext4 -q $disk
mount $disk /run/disk
cp -a {TREE} /run/disk/tree
cd /run/disk/tree
find . -type f -print0 | sort -z | xargs -0 sha256sum >/run/sums
cp /run/sums /run/disk/sums
cd /
report files $(wc -l </run/sums)
report tree $(sha256sum </run/sums | cut -d' ' -f1)
umount /run/disk
logout {IQN}
say logged out

login {IQN}
disk=$(disk_of {IQN})
e2fsck -fn $disk
mount -o ro $disk /run/disk
cmp /run/sums /run/disk/sums
cd /run/disk/tree
sha256sum --quiet -c /run/sums
cd /
umount /run/disk
report disk $(sha256sum $disk | cut -d' ' -f1)
logout {IQN}
"""


def checksum_of_tree(tree: Path) -> tuple[int, str]:
    """What the guest reports of a tree: the number of files, and a checksum over their checksums."""
    found = (path for path in tree.rglob("*") if path.is_file() and not path.is_symlink())
    files = {os.fsencode(path.relative_to(tree)): path for path in found}
    digest = hashlib.sha256()
    for name, path in sorted(files.items()):
        digest.update(hashlib.sha256(path.read_bytes()).hexdigest().encode() + b"  ./" + name + b"\n")
    return len(files), digest.hexdigest()


def test_file_system(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Discovery, login, mkfs.ext4, a tree copied; after a second login fsck is clean, and all checksums are right.

    The same bytes are then read on the server's side, by a client of the shared memory.
    """
    with serve_in(network, short_dir, "64M") as serve:
        guest = Guest(network, tmp_path)
        result = guest.run(FILE_SYSTEM, timeout_s=90)
        passed(result, guest, serve)
        files, tree = checksum_of_tree(TREE)
        assert int(result.values["bytes"]) == 64 * MIB
        assert (int(result.values["files"]), result.values["tree"]) == (files, tree)
        assert checksum_on_the_server(serve, "disk") == result.values["disk"]
        assert serve.stop() == 0


APART_S = 15.5  # `serve` gives up after five deaths in a minute: these are just slower

# Files are written over and over, 16 KiB at a time and each durable, until the test has killed enough. What is written
# comes from the guest's memory, to be compared with in the end.
WRITES = f"""
discover {TARGET_ADDRESS}
login {IQN}
disk=$(disk_of {IQN})
mkfs.ext4 -q $disk
mount $disk /run/disk
mkdir /run/source
for file in $(seq 20); do
    dd if=/dev/urandom of=/run/source/$file bs=64k count=4 status=none
done
round=0
until told enough; do
    round=$((round + 1))
    say round $round
    file=$((round % 20 + 1))
    dd if=/run/source/$file of=/run/disk/$file bs=16k oflag=dsync conv=fsync status=none
done
say wrote $round files
sync
echo 3 >/proc/sys/vm/drop_caches
for file in /run/disk/[0-9]*; do
    cmp $file /run/source/${{file##*/}}
done
report files $(ls /run/disk/[0-9]* | wc -l)
umount /run/disk
e2fsck -fn $disk
logout {IQN}
"""


@pytest.mark.parametrize(
    ("kills", "apart_s"),
    [
        pytest.param(4, 0.0, id="one behind the other"),
        pytest.param(10, APART_S, id="for minutes", marks=[pytest.mark.soak, pytest.mark.timeout(600)]),
    ],
)
def test_server_killed_while_linux_writes(
    network: GuestNetwork, short_dir: Path, tmp_path: Path, kills: int, apart_s: float
) -> None:
    """The volume server dies again and again under fsynced writes, every second time with the target, while snapshots
    come and go: no I/O error reaches the file system, no byte is lost."""
    with serve_in(network, short_dir, "64M") as serve:
        guest = Guest(network, tmp_path)
        guest.start(WRITES)
        try:
            guest.wait_for("guest: round ", 60.0, times=3)
            for kill in range(kills):
                if kill and apart_s:
                    guest.wait_quietly(apart_s)
                with shm_client.Context(state_dir=serve.state_dir) as context:
                    context.create_snapshot("disk", f"s{kill}")
                    if kill:
                        context.remove_snapshot("disk", f"s{kill - 1}")
                killed = serve.kill_server()
                if kill % 2:
                    serve.kill_target()
                serve.wait_new_server(killed)
                guest.wait_for_another("guest: round ", 30.0)
            guest.wait_for("guest: round ", 60.0, times=20)  # one for each file, at least
            guest.tell("enough")
            result = guest.finish(60.0)
        finally:
            guest.kill()
        passed(result, guest, serve)
        assert int(result.values["files"]) == 20
        assert serve.stop() == 0


def test_target_stopped_and_started_while_linux_writes(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """`serve` is asked to end and started again, twice: Linux is asked to log out, comes back, and loses nothing."""
    with serve_in(network, short_dir, "64M") as serve:
        guest = Guest(network, tmp_path)
        guest.start(WRITES)
        try:
            guest.wait_for("guest: round ", 60.0, times=3)
            for _ in range(2):
                assert serve.stop() == 0
                serve.start()
                guest.wait_for_another("guest: round ", 60.0)
            guest.tell("enough")
            result = guest.finish(60.0)
        finally:
            guest.kill()
        passed(result, guest, serve)
        assert int(result.values["files"]) >= 5  # a round before, between and after, and all of them as written
        assert serve.stop() == 0
