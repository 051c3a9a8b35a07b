"""device-mapper multipath of a real Linux over two portals: one path dies under load, and no byte is lost."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.guest.test_linux import checksum_on_the_server
from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop.serving import IQN_PREFIX, Serve
from tests.tools import require_tool

pytestmark = [pytest.mark.guest, pytest.mark.serial, pytest.mark.timeout(150)]

OTHER_ADDRESS = "192.0.2.3"
IQN = f"{IQN_PREFIX}disk"
CONFIG = f"""
[portal-group.one]
tag = 1
listen = ["{TARGET_ADDRESS}:3260"]
[portal-group.two]
tag = 2
listen = ["{OTHER_ADDRESS}:3260"]
[lun.disk]
[target.disk]
portal-group = ["one", "two"]
lun.0 = "disk"
"""

# There is no udev in the guest, so there is no multipathd: the map is made by hand. A path that is gone is given up
# after two seconds of unanswered pings.
SCRIPT = f"""
sed -E -i \\
    -e 's/^(node.conn.*timeo.noop_out_(interval|timeout)) *=.*/\\1 = 1/' \\
    -e 's/^(node.session.timeo.replacement_timeout) *=.*/\\1 = 1/' /etc/iscsi/iscsid.conf
grep -c '^node.*timeo.*= 1$' /etc/iscsi/iscsid.conf | grep -qx 3
modprobe -a dm_multipath dm_round_robin
discover {TARGET_ADDRESS} >/run/found
report portals "$(awk '{{print $1}}' /run/found | sort | tr '\\n' ' ')"
login {IQN}
for tries in $(seq 200); do
    disks=$(ls /sys/class/block | grep -c '^sd' || true)
    [ $disks -eq 2 ] && break
    sleep 0.05
done
for disk in sda sdb; do sg_vpd --page=di --quiet /dev/$disk >/run/$disk; done
report identity "$(grep -m1 -ho '0x3[0-9a-f]*' /run/sda /run/sdb | sort -u | wc -l)"
report ports "$(cat /run/sda /run/sdb | grep -o 't,0x....' | sort | tr '\\n' ' ')"
numbers=$(for disk in sda sdb; do cat /sys/class/block/$disk/dev; done)
set -- $numbers
dmsetup create --noudevsync paths --table \\
    "0 $(blockdev --getsz /dev/sda) multipath 1 queue_if_no_path 0 1 1 round-robin 0 2 1 $1 1 $2 1"
mkdir -p /dev/mapper
[ -b /dev/mapper/paths ] || dmsetup mknodes paths
map=/dev/mapper/paths
dd if=/dev/urandom of=/run/source bs=1M count=4 status=none
round=0
until told enough; do
    round=$((round + 1))
    dd if=/run/source of=$map bs=64k seek=$((round % 8 * 64)) oflag=direct conv=fsync status=none
    say round $round
done
report rounds $round
report paths "$(dmsetup status paths)"
for part in $(seq 0 7); do
    [ $part -le $((round - 1)) ] || break
    dd if=$map of=/run/read bs=64k skip=$((part * 64)) count=64 iflag=direct status=none
    cmp /run/source /run/read || report differs $part
done
report disk $(sha256sum $map | cut -d' ' -f1)
dmsetup remove --noudevsync paths
"""


def test_a_path_dies_under_load(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Both portals are one disk; the address of one goes away in the middle of writes: they go on by the other."""
    require_tool("dmsetup", "dmsetup")
    require_tool("sg_vpd", "sg3-utils")
    address = [*network.prefix, network.ip, "address"]
    subprocess.run([*address, "add", f"{OTHER_ADDRESS}/24", "dev", "tap0"], check=True, timeout=20)
    with Serve(short_dir / "s", {"disk": "64M"}, config=CONFIG, prefix=network.prefix) as serve:
        guest = Guest(network, tmp_path)
        guest.start(SCRIPT)
        try:
            guest.wait_for("guest: round ", 60.0, times=9)
            subprocess.run([*address, "del", f"{OTHER_ADDRESS}/24", "dev", "tap0"], check=True, timeout=20)
            for _ in range(3):
                guest.wait_for_another("guest: round ", 40.0)
            guest.tell("enough")
            result = guest.finish(60.0)
        finally:
            guest.kill()
        assert result.code == 0, f"{guest.tail()}\n{serve.log_tail()}"
        said = result.values
        assert said["portals"].split() == [f"{TARGET_ADDRESS}:3260,1", f"{OTHER_ADDRESS}:3260,2"]
        assert said["identity"] == "1"
        assert said["ports"].split() == ["t,0x0001", "t,0x0002"]
        assert "differs" not in said
        assert " F " in said["paths"], "one of the paths has failed"
        assert " A " in said["paths"], "and the other has not"
        assert checksum_on_the_server(serve, "disk") == said["disk"]
        assert serve.stop() == 0
