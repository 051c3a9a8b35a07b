"""The Linux initiator behind CHAP and with digests: every algorithm one-way and mutual, every digest, wrong secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.guest.uml import TARGET_ADDRESS, Guest, GuestNetwork
from tests.interop.guarded import (
    ALGORITHMS,
    ANY,
    OUR_NAME,
    OUR_SECRET,
    SECRET,
    USER,
    WRONG_SECRET,
    Guarded,
    target_of,
)

pytestmark = [pytest.mark.guest, pytest.mark.timeout(150)]

# As open-iscsi calls them; it offers them in this order.
LINUX_NAMES = {"SHA3-256": "SHA3-256", "SHA-256": "SHA256", "SHA-1": "SHA1", "MD5": "MD5"}
DIGESTS = (("CRC32C", "None"), ("None", "CRC32C"), ("CRC32C", "CRC32C"), ("CRC32C,None", "None,CRC32C"))

PRELUDE = f"""
# set_in FILE KEY VALUE; discovery has its settings in iscsid.conf, a node its own
set_in() {{ sed -i "/^$1[ =]/d" /etc/iscsi/iscsid.conf; echo "$1 = $2" >>/etc/iscsi/iscsid.conf; }}
node() {{ local iqn=$1; shift; iscsiadm -m node -T "$iqn" -o update -n "$1" -v "$2"; }}
one_way() {{
    node $1 node.session.auth.authmethod CHAP
    node $1 node.session.auth.username {USER}
    node $1 node.session.auth.password $2
    node $1 node.session.auth.username_in ''
    node $1 node.session.auth.password_in ''
}}
mutual() {{
    one_way $1 $2
    node $1 node.session.auth.username_in {OUR_NAME}
    node $1 node.session.auth.password_in $3
}}
nothing() {{
    local key
    node $1 node.session.auth.authmethod None
    for key in username password username_in password_in; do
        node $1 node.session.auth.$key ''
    done
}}
# bytes IQN: write, drop what is cached, read back, compare
dd if=/dev/urandom of=/run/random bs=64k count=16 status=none
bytes() {{
    local disk
    disk=$(disk_of $1)
    dd if=/dev/urandom of=/run/random bs=4k count=1 conv=notrunc status=none
    dd if=/run/random of=$disk bs=512k oflag=direct status=none
    dd if=/run/random of=$disk bs=512 count=7 seek=4001 oflag=direct status=none
    echo 3 >/proc/sys/vm/drop_caches
    cmp -n 1048576 /run/random $disk
    cmp -n 3584 /run/random $disk 0 $((4001 * 512))
}}
digests() {{ iscsiadm -m session -P 3 | awk '/HeaderDigest|DataDigest/ {{ print $2 }}' | xargs; }}
refused() {{
    local code=0
    iscsiadm -m node -T $1 --login || code=$?
    report $2 $code
}}

for which in username:{USER} password:{SECRET} username_in:{OUR_NAME} password_in:{OUR_SECRET} authmethod:CHAP; do
    set_in discovery.sendtargets.auth.${{which%%:*}} "${{which#*:}}"
done
discover {TARGET_ADDRESS} | tee /run/found
"""


def script() -> str:
    lines = [PRELUDE, "report found $(wc -l </run/found)"]
    offer = ",".join(LINUX_NAMES.values())
    for algorithm in ALGORITHMS:
        iqn = target_of(algorithm)
        lines.append(f"node {iqn} node.session.auth.chap_algs {offer}")
        lines.append(f"one_way {iqn} {SECRET}; login {iqn}; bytes {iqn}; logout {iqn}")
        lines.append(f"mutual {iqn} {SECRET} {OUR_SECRET}; login {iqn}; bytes {iqn}; logout {iqn}")
        lines.append(f"report {algorithm} yes")
    # One algorithm in Linux's list, all of them in ours.
    for name in LINUX_NAMES.values():
        lines.append(f"node {ANY} node.session.auth.chap_algs {name}")
        lines.append(f"one_way {ANY} {SECRET}; login {ANY}; bytes {ANY}; logout {ANY}; report any-{name} yes")
    lines.append(f"mutual {ANY} {SECRET} {OUR_SECRET}")
    for number, (header, data) in enumerate(DIGESTS):
        lines.append(f"node {ANY} node.conn[0].iscsi.HeaderDigest {header}")
        lines.append(f"node {ANY} node.conn[0].iscsi.DataDigest {data}")
        lines.append(f'login {ANY}; bytes {ANY}; report digests-{number} "$(digests)"; logout {ANY}')
    lines.append(f"one_way {ANY} {WRONG_SECRET}; refused {ANY} wrong")
    lines.append(f"mutual {ANY} {SECRET} {WRONG_SECRET}; refused {ANY} wrong-mutual")
    lines.append(f"nothing {ANY}; refused {ANY} none")
    return "\n".join(lines) + "\n"


def test_chap_and_digests(network: GuestNetwork, short_dir: Path, tmp_path: Path) -> None:
    """Discovery and logins by every algorithm, one-way and mutual; data under every digest; 0201 for a wrong secret.

    Each target takes one algorithm only, so that a login proves which one it was.
    """
    with Guarded(short_dir, f"{TARGET_ADDRESS}:3260", network.prefix) as guarded:
        guest = Guest(network, tmp_path)
        result = guest.run(script(), timeout_s=120)
        assert result.code == 0, f"{guest.tail()}\n{guarded.log[-2000:]}"
        assert result.io_errors() == []
        values = result.values
        assert values["found"] == str(1 + len(ALGORITHMS))
        assert all(values[algorithm] == "yes" for algorithm in ALGORITHMS)
        assert all(values[f"any-{name}"] == "yes" for name in LINUX_NAMES.values())
        assert [values[f"digests-{number}"] for number in range(len(DIGESTS))] == [
            "CRC32C None", "None CRC32C", "CRC32C CRC32C", "CRC32C None",
        ]  # fmt: skip
        assert values["wrong"] == "24"  # "login failed due to authorization failure"
        assert values["none"] == "24"
        assert values["wrong-mutual"] == "19"  # it is Linux that turns away: our proof is not what it expects
        assert "login refused (0201)" in guarded.await_log(f"as '{USER}': wrong secret")
        guarded.await_log("must authenticate, and does not offer to")
        logins = [line for line in guarded.log.splitlines() if f"as '{USER}' from" in line]
        assert len(logins) == 2 * len(ALGORITHMS) + len(LINUX_NAMES) + len(DIGESTS)
