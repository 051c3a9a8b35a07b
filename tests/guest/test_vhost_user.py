"""A Linux guest whose disk is an exported volume: its driver, its file system, its memory shared with the server."""

from __future__ import annotations

import hashlib
import os
import subprocess
from pathlib import Path

import pytest

from iscsi_ovs import shm_client
from tests.guest.test_linux import TREE, checksum_of_tree, checksum_on_the_server, passed, serve_in
from tests.guest.uml import Guest, GuestNetwork
from tests.interop import initiators

pytestmark = [pytest.mark.guest, pytest.mark.timeout(150)]

MIB = 1 << 20

FILL = f"""
modprobe virtio_blk
report bytes $(blockdev --getsize64 /dev/vda)
report serial $(cat /sys/block/vda/serial)
mkfs.ext4 -q /dev/vda
mount /dev/vda /run/disk
cp -a {TREE} /run/disk/tree
dd if=/dev/urandom of=/run/disk/large bs=1M count=48 conv=fsync status=none
cd /run/disk/tree
find . -type f -print0 | sort -z | xargs -0 sha256sum >/run/sums
cd /
cp /run/sums /run/disk/sums
report files $(wc -l </run/sums)
report tree $(sha256sum </run/sums | cut -d' ' -f1)
sync
say filled
until told grown; do sleep 0.05; done
until [ $(blockdev --getsize64 /dev/vda) = {256 * MIB} ]; do sleep 0.05; done
rm /run/disk/large
sync  # what is freed can be trimmed when its transaction is over
fstrim /run/disk
say trimmed
umount /run/disk
e2fsck -fn /dev/vda
"""

LOOK = """
modprobe virtio_blk
e2fsck -fn /dev/vda
mount -o ro /dev/vda /run/disk
cd /run/disk/tree
sha256sum --quiet -c /run/disk/sums
report tree $(sha256sum </run/disk/sums | cut -d' ' -f1)
cd /
umount /run/disk
report disk $(sha256sum /dev/vda | cut -d' ' -f1)
"""


def test_file_system(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """mkfs.ext4, a tree copied, growth seen while it runs, fstrim gives space back; after a reboot fsck is clean.

    Every checksum is right, and the volume's bytes are the same over iSCSI, and to a client of the shared memory.
    """
    path = short_dir / "vm.sock"
    with serve_in(network, short_dir, "192M") as serve, shm_client.Context(state_dir=serve.state_dir) as context:
        said = serve.volume("export", "disk", "--vhost-user", str(path))
        assert said.returncode == 0, said.stderr
        argument = said.stdout.splitlines()[-1].strip()
        assert argument == f"virtio_uml.device={path}:2"
        guest = Guest(network, tmp_path / "1", arguments=[argument])
        guest.start(FILL)
        guest.wait_for("guest: filled", 60)
        full = context.stat_volume("disk").allocated_bytes
        assert serve.volume("resize", "disk", "256M").returncode == 0
        guest.tell("grown")
        guest.wait_for("guest: trimmed", 30)
        assert context.stat_volume("disk").allocated_bytes < full - 40 * MIB
        result = guest.finish(60)
        passed(result, guest, serve)
        files, tree = checksum_of_tree(TREE)
        assert int(result.values["bytes"]) == 192 * MIB
        assert result.values["serial"] == context.stat_volume("disk").uuid[:20]
        assert (int(result.values["files"]), result.values["tree"]) == (files, tree)
        again = Guest(network, tmp_path / "2", arguments=[argument])
        result = again.run(LOOK, 60)
        passed(result, again, serve)
        assert result.values["tree"] == tree
        assert serve.volume("unexport", "disk").returncode == 0
        assert checksum_on_the_server(serve, "disk") == result.values["disk"]
        image = tmp_path / "image"
        convert = initiators.command("qemu-img", "convert", "-f", "raw", "-O", "raw", serve.url("disk"), str(image))
        subprocess.run([*network.prefix, *convert], check=True, timeout=60)
        with image.open("rb") as file:
            assert hashlib.file_digest(file, "sha256").hexdigest() == result.values["disk"]
        assert serve.stop() == 0


# Ten files are written by four writers at once, and read back with the cache dropped.
LOAD = """
modprobe virtio_blk
mkfs.ext4 -q /dev/vda
mount /dev/vda /run/disk
for file in $(seq 4); do
    dd if=/dev/urandom of=/run/$file bs=64k count=64 status=none
    ( for copy in $(seq 5); do dd if=/run/$file of=/run/disk/$file.$copy bs=16k oflag=direct status=none; done ) &
    writers="${writers:-} $!"
done
wait $writers
sync
echo 3 >/proc/sys/vm/drop_caches
for file in $(seq 4); do
    for copy in $(seq 5); do cmp /run/$file /run/disk/$file.$copy; done
done
umount /run/disk
e2fsck -fn /dev/vda
"""


def test_writers_at_once(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Four writers with direct I/O: what each wrote is read back, beside a second disk that is read-only."""
    with serve_in(network, short_dir, "128M") as serve, shm_client.Context(state_dir=serve.state_dir) as context:
        context.create_volume("image", MIB)
        data = os.urandom(MIB)
        with context.open("image") as image:
            buffer = context.allocate(MIB)
            buffer.data[:] = data
            image.write(buffer, MIB, 0)
        context.export_volume("disk", short_dir / "a.sock")
        context.export_volume("image", short_dir / "b.sock", read_only=True)
        arguments = [f"virtio_uml.device={short_dir / name}:2" for name in ("a.sock", "b.sock")]
        guest = Guest(network, tmp_path, arguments=arguments)
        result = guest.run(
            LOAD + "report image $(sha256sum /dev/vdb | cut -d' ' -f1)\nreport ro $(blockdev --getro /dev/vdb)\n", 90
        )
        passed(result, guest, serve)
        assert result.values["image"] == hashlib.sha256(data).hexdigest()
        assert result.values["ro"] == "1"
        assert serve.stop() == 0
