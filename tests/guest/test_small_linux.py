"""A Linux guest under a stock QEMU whose disks are exported volumes: twice booted, with packed and with split rings.

It has no KVM to run on, so what it does is small; what it proves is that the kernel's virtio driver, QEMU and the door
understand each other, also when the volume server dies under several requests in flight.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs import machines
from iscsi_ovs.shm_client import Context
from tests.guest.console import GuestResult
from tests.guest.small_linux import MEMORY, SmallLinux
from tests.interop import initiators, processes
from tests.interop.serving import Serve

pytestmark = [pytest.mark.guest, pytest.mark.serial, pytest.mark.timeout(150)]

MIB = 1 << 20
SMALL, LARGE = 48 * MIB, 64 * MIB
WRITERS, BLOCKS, BLOCK = 4, 32, 64 << 10  # on the second disk
LOAD = WRITERS * BLOCKS * BLOCK
KILLS = 2

FILL = f"""
report ring $(cut -c 35 /sys/block/vda/device/features)
report bytes $(blockdev --getsize64 /dev/vda)
report serial $(cat /sys/block/vda/serial)
mke2fs -q -t ext4 /dev/vda
mount -t ext4 /dev/vda /run/disk
mkdir /run/disk/tree
cp -a /usr /lib* /bin /modules /etc /run/disk/tree
dd if=/dev/urandom of=/run/disk/large bs=1M count=12 conv=fsync status=none
cd /run/disk/tree
find . -type f | sort | xargs md5sum >/run/sums
cp /run/sums /run/disk/sums
cd /
report files $(wc -l </run/sums)
sync
say filled
until told grown; do usleep 50000; done
until [ $(blockdev --getsize64 /dev/vda) = {LARGE} ]; do usleep 50000; done
rm /run/disk/large
sync  # what is freed can be trimmed when its transaction is over
fstrim /run/disk
say trimmed
umount /run/disk
e2fsck -fn /dev/vda
"""

# Each writer has eight patterns, and notes which of them it was told is on which block. A fifth leaves deep queues.
WRITE = f"""
report ring $(cut -c 35 /sys/block/vda/device/features)$(cut -c 35 /sys/block/vdb/device/features)
e2fsck -fn /dev/vda
mount -t ext4 /dev/vda /run/disk
(cd /run/disk/tree && md5sum -c /run/disk/sums >/dev/null)
for writer in $(seq {WRITERS}); do
    mkdir /run/$writer
    for pattern in $(seq 0 7); do dd if=/dev/urandom of=/run/$writer/$pattern bs=64k count=1 status=none; done
    (
        cd /run/$writer
        number=0
        until told stop; do
            block=$((number * 17 % {BLOCKS})) pattern=$((number % 8))
            echo none >block.$block
            dd if=$pattern of=/dev/vdb bs=64k count=1 seek=$(({BLOCKS} * (writer - 1) + block)) \\
                conv=notrunc oflag=direct status=none
            echo $pattern >block.$block
            number=$((number + 1))
            [ $((number % 4)) != 3 ] || say writing
        done
        echo $number >count
    ) &
    writers="${{writers:-}} $!"
done
(
    number=0
    until told stop; do
        cat /bin/busybox /run/disk/sums >/run/disk/new
        sync
        mv /run/disk/new /run/disk/copy.$((number % 4))
        number=$((number + 1))
    done
) &
for writer in $writers $!; do wait $writer; done
sync
echo 3 >/proc/sys/vm/drop_caches
cat /bin/busybox /run/disk/sums >/run/expected
for copy in /run/disk/copy.*; do cmp $copy /run/expected; done
total=0
for writer in $(seq {WRITERS}); do
    total=$((total + $(cat /run/$writer/count)))
    for file in /run/$writer/block.*; do
        block=${{file##*.}}
        dd if=/dev/vdb bs=64k count=1 skip=$(({BLOCKS} * (writer - 1) + block)) iflag=direct status=none |
            cmp - /run/$writer/$(cat $file)
    done
done
report writes $total
umount /run/disk
e2fsck -fn /dev/vda
report disk $(md5sum /dev/vda | cut -d' ' -f1)
"""


def passed(result: GuestResult, guest: SmallLinux, serve: Serve) -> None:
    """The script ran to its end, and the guest's kernel saw no I/O error."""
    assert result.code == 0, f"{guest.tail()}\n{serve.log_tail()}"
    assert result.io_errors() == []


@pytest.fixture
def serve(short_dir: Path) -> Iterator[Serve]:
    """Two volumes, exported whenever a volume server runs.

    On "load" every second write of a writer is slow, so that what is in flight is not what was taken last.
    """
    slow = {"volume": "load", "operations": ["write"], "length": BLOCKS * BLOCK // 2, "seconds": 0.1}
    state = short_dir / "s"
    vpool = {
        "filesystem": {"fs_enable_shm_interface": True},
        "backend_connection_manager": {"local_connection_path": str(state / "pool")},
        "shm_server": {
            "exports": [{"volume": name, "vhost_user": str(short_dir / name)} for name in ("disk", "load")],
            "delay": [{**slow, "offset": writer * BLOCKS * BLOCK} for writer in range(WRITERS)],
        },
    }
    with Serve(state, {"disk": str(SMALL), "load": str(LOAD)}, vpool=vpool) as made:
        processes.wait_until((short_dir / "disk").exists, 10, "the export")
        processes.wait_until((short_dir / "load").exists, 10, "the export")
        yield made


def arguments(directory: Path, volume: str, more: str = "") -> list[str]:
    """QEMU's, as `volume export` prints them, for memory and a disk; ``more`` are properties of that."""
    *found, device = machines.qemu_arguments(volume, str(directory / volume), MEMORY)
    return [*found, device + more]


def test_linux_under_qemu(serve: Serve, short_dir: Path, tmp_path: Path) -> None:
    """mkfs.ext4, a tree copied, growth seen while it runs, fstrim gives space back; after a reboot fsck is clean.

    Then the volume server is killed twice under several requests in flight, on a disk with split rings and on one with
    packed ones: no error reaches the guest, every acknowledged write is there, and the bytes are the same over iSCSI.
    """
    first = SmallLinux(tmp_path / "1", arguments(short_dir, "disk", ",packed=on"))
    with Context(state_dir=serve.state_dir) as context, first as guest:
        guest.start(FILL)
        guest.console.wait_for("guest: filled", 60)
        full = context.stat_volume("disk").allocated_bytes
        context.truncate_volume("disk", LARGE)
        guest.tell("grown")
        guest.console.wait_for("guest: trimmed", 30)
        assert context.stat_volume("disk").allocated_bytes < full - 10 * MIB
        result = guest.finish(60)
        passed(result, guest, serve)
        assert result.values["ring"] == "1"  # VIRTIO_F_RING_PACKED
        assert int(result.values["bytes"]) == SMALL
        assert result.values["serial"] == context.stat_volume("disk").uuid[:20]
        assert int(result.values["files"]) > 10
    disks = arguments(short_dir, "disk") + arguments(short_dir, "load", ",packed=on,num-queues=2")[-4:]
    with SmallLinux(tmp_path / "2", disks, processors=2) as guest:
        guest.start(WRITE)
        guest.console.wait_for("guest: writing", 60, times=WRITERS)
        for _ in range(KILLS):
            several_are_in_flight(serve)
            old = serve.kill_server()
            serve.wait_new_server(old)
            guest.console.wait_for_another("guest: writing", 20)
        several_are_in_flight(serve)
        guest.tell("stop")
        result = guest.finish(60)
        passed(result, guest, serve)
    assert result.values["ring"] == "01"
    assert int(result.values["writes"]) > 3 * WRITERS
    assert serve.volume("unexport", "disk").returncode == 0
    initiators.download(serve.url("disk"), tmp_path / "image")
    with (tmp_path / "image").open("rb") as image:
        assert hashlib.file_digest(image, "md5").hexdigest() == result.values["disk"]
    assert serve.stop() == 0


def several_are_in_flight(serve: Serve) -> None:
    """Waits for a server, and until writes are on their way there."""

    def is_busy() -> bool:
        try:
            with Context(state_dir=serve.state_dir) as context:
                return sum(handle.in_flight for handle in context.list_handles() if handle.volume == "load") > 1
        except ConnectionError:
            return False

    processes.wait_until(is_busy, 20, "several requests in flight")
