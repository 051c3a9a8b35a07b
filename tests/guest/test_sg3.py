"""sg3-utils on a real Linux initiator: what tools of another project make of the unit, its pages, its commands."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.test_linux import IQN, passed, serve_in
from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.tools import require_tool

pytestmark = [pytest.mark.guest, pytest.mark.timeout(150)]

# Exit codes of sg3-utils (sg_sense_ret in their common documentation)
MISCOMPARE = 14
RESERVATION_CONFLICT = 24

# `try NAME COMMAND…` keeps the command's output and exit code; `of OFFSET COUNT FILE` reads blocks of the disk.
SETUP = f"""
discover {TARGET_ADDRESS}
login {IQN}
modprobe sg
disk=$(disk_of {IQN})
sg=/dev/sg0
try() {{
    local name=$1 code=0
    shift
    "$@" >/run/$name 2>&1 || code=$?
    report $name.code $code
    report $name "$(tr '\\n\\t' '| ' </run/$name)"
}}
of() {{ dd if=$disk of=$3 bs=512 skip=$1 count=$2 iflag=direct status=none; }}
head -c 32768 /dev/urandom >/run/data
head -c 512 /run/data >/run/first
tail -c 512 /run/data >/run/last
tail -c 24576 /run/data >/run/rest
head -c 65536 /dev/zero >/run/zeros
"""

COMMANDS = (
    SETUP
    + """
try inquiry sg_inq $disk
try pages sg_vpd -a $disk
try opcodes sg_opcodes $disk
try functions sg_opcodes -t $disk
try luns sg_luns $disk
try well_known sg_luns --select=1 $disk
try groups sg_rtpg -d $disk
try capacity sg_readcap -l $disk
try modes sg_modes -a $disk
try logs sg_logs -a $disk
try ready sg_turs $disk
try sense sg_requests $disk
try flush sg_sync $disk
try prevent sg_prevent --prevent=1 $disk
try allow sg_prevent --allow $disk
try stop sg_start --stop $disk
try start sg_start --start $disk
try diagnostic sg_senddiag --test $disk
try usage sg_logs --page=0xc $disk
try time sg_timestamp $disk
try set_time sg_timestamp --milliseconds=1000000000000 $disk
try other_time sg_timestamp $disk
control() { sg_wr_mode --page=0xa --contents=0a,0a,02,10,$1,00,00,00,00,00,00,00 ${2:-} $disk; }
try protect control 08
try protected sg_modes --page=0xa $disk
try unprotect control 00 --save

try hole sg_get_lba_status --lba=0 $disk
dd if=/run/data of=$disk bs=512 count=64 oflag=direct status=none
try mapped sg_get_lba_status --lba=0 $disk
try verify sg_verify --lba=0 --count=64 $disk
try compare sg_verify --lba=0 --count=64 --ndo=32768 --in=/run/data $disk
try differs sg_verify --lba=1 --count=64 --ndo=32768 --in=/run/data $disk
try unmap sg_unmap --lba=0 --num=16 --force $disk
of 0 16 /run/read
cmp -n 8192 /run/read /run/zeros
try unmapped sg_get_lba_status --lba=0 $disk
try same sg_write_same --in=/run/first --lba=100 --num=8 --xferlen=512 $disk
of 107 1 /run/read
cmp /run/read /run/first
try same_unmap sg_write_same --16 --unmap --lba=104 --num=1000 --in=/run/zeros --xferlen=512 $disk
of 107 1 /run/read
cmp -n 512 /run/read /run/zeros
of 100 1 /run/pair
cat /run/last >>/run/pair
try swap sg_compare_and_write --in=/run/pair --lba=100 --num=1 --xferlen=1024 $disk
of 100 1 /run/read
cmp /run/read /run/last
try swap_again sg_compare_and_write --in=/run/pair --lba=100 --num=1 --xferlen=1024 $disk
try copy sg_xcopy if=$sg of=$sg bs=512 skip=16 seek=5000 count=48
of 5000 48 /run/read
cmp /run/read /run/rest
try sanitize sg_sanitize --block --quick --wait $disk
of 5000 48 /run/read
cmp -n 24576 /run/read /run/zeros
try sanitized sg_get_lba_status --lba=0 $disk
logout """
    + IQN
)


def said_by(
    script: str, network: GuestNetwork, short_dir: Path, directory: Path
) -> tuple[dict[str, str], dict[str, int]]:
    """What the tools of a script printed, and the exit codes of those that did not succeed."""
    require_tool("sg_inq", "sg3-utils")
    with serve_in(network, short_dir, "64M") as serve:
        guest = Guest(network, directory)
        result = guest.run(script, timeout_s=90)
        passed(result, guest, serve)
        assert serve.stop() == 0
    codes = {name[:-5]: int(code) for name, code in result.values.items() if name.endswith(".code")}
    return result.values, {name: code for name, code in codes.items() if code}


def test_commands_and_pages(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Every tool finds what it asks for; data commands do to the disk what they say, read back by the kernel."""
    said, codes = said_by(COMMANDS, network, short_dir, tmp_path)
    assert codes == {
        "differs": MISCOMPARE,
        "swap_again": MISCOMPARE,
    }
    assert "SHM VOLUME" in said["inquiry"]
    for page in ("[sv]", "[sn]", "[di]", "[ei]", "[mpp]", "[sp]", "[tpc]", "[bl]", "[bdc]", "[lbpv]"):
        assert page in said["pages"]
    assert "naa.3" in said["pages"]
    for name in ("Write(16)", "Compare and write", "Orwrite(16)", "Extended copy(LID1)", "Unmap", "Verify(12)"):
        assert name in said["opcodes"]
    for name in ("Abort task set", "Logical unit reset", "Query task", "I_T nexus reset"):
        assert name in said["functions"]
    assert "1 lun entry" in said["luns"]
    assert "c101000000000000" in said["well_known"]
    assert "active/optimized" in said["groups"]
    assert "lbpme=1, lbprz=1" in said["capacity"]
    assert "Number of logical blocks=131072" in said["capacity"]
    assert "Control" in said["modes"]
    assert "Informational Exceptions" in said["logs"]
    assert "Used LBA mapping threshold resource count: 0" in said["usage"]
    assert "100000000" in said["other_time"]
    assert said["time"] != said["other_time"]
    assert "WP=1" in said["protected"]
    assert "131072  deallocated" in said["hole"]
    assert "64  mapped" in said["mapped"]
    assert "16  deallocated" in said["unmapped"]
    assert "131072  deallocated" in said["sanitized"]
    assert "LBA 0x1" in said["differs"]
    assert "byte offset: 0" in said["swap_again"]


RESERVATIONS = (
    SETUP
    + """
try none sg_persist --in --read-keys $disk
try register sg_persist --out --register --param-sark=0x123 $disk
for type in 1 3 5 6 7 8; do
    try reserve$type sg_persist --out --reserve --param-rk=0x123 --prout-type=$type $disk
    try held$type sg_persist --in --read-reservation $disk
    try release$type sg_persist --out --release --param-rk=0x123 --prout-type=$type $disk
done
try status sg_persist --in --read-full-status $disk
try capabilities sg_persist --in --report-capabilities $disk
try ignore sg_persist --out --register-ignore --param-sark=0x456 $disk
try wrong sg_persist --out --register --param-rk=0x123 --param-sark=0x789 $disk
try reserve sg_persist --out --reserve --param-rk=0x456 --prout-type=3 $disk
try preempt sg_persist --out --preempt --param-rk=0x456 --param-sark=0x456 --prout-type=1 $disk
try preempt_abort sg_persist --out --preempt-abort --param-rk=0x456 --param-sark=0x456 --prout-type=5 $disk
try preempted sg_persist --in --read-reservation $disk
dd if=/run/data of=$disk bs=512 count=64 oflag=direct status=none
other=iqn.2016-01.com.openvstorage:other,i,0x00023d000009
try move sg_persist --out --register-move --param-rk=0x456 --param-sark=0x999 --transport-id=$other \\
    --relative-target-port=1 $disk
try moved sg_persist --in --read-reservation $disk
try moved_to sg_persist --in --read-full-status $disk
try clear sg_persist --out --clear --param-rk=0x456 $disk
try cleared sg_persist --in --read-keys $disk
logout """
    + IQN
)
TYPES = {
    1: "Write Exclusive",
    3: "Exclusive Access",
    5: "Write Exclusive, registrants only",
    6: "Exclusive Access, registrants only",
    7: "Write Exclusive, all registrants",
    8: "Exclusive Access, all registrants",
}


def test_persistent_reservations(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """sg_persist takes every action and type through; a wrong key is a conflict, a clear leaves nothing."""
    said, codes = said_by(RESERVATIONS, network, short_dir, tmp_path)
    assert codes == {"wrong": RESERVATION_CONFLICT}
    for number, name in TYPES.items():
        assert f"type: {name}" in said[f"held{number}"]
    assert "iSCSI world wide unique port id: iqn." in said["status"]
    assert "Write Exclusive, registrants only" in said["preempted"]
    assert "Key=0x999" in said["moved"]
    assert "openvstorage:other,i,0x00023d000009" in said["moved_to"]
    assert "NO registered reservation keys" in said["none"]
    assert "NO registered reservation keys" in said["cleared"]
