"""Sections → a Configuration: names resolved, defaults filled in, contradictions refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from iscsi_ovs.config.configuration import EVERYBODY, Access, LunMap, is_among
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.login import policy
from iscsi_ovs.net.portal import Address
from iscsi_ovs.scsi import AccessState, Personality
from iscsi_ovs.session.liveness import Timing
from tests.config.files import LEAST, WHOLE, changed, load

IQN = "iqn.2024-05.com.example:disk"


def test_the_least(tmp_path: Path) -> None:
    """One target, one LUN: everything else has its default."""
    found = load(tmp_path, LEAST)
    (target,) = found.targets.values()
    assert target.iqn == "iqn.2016-01.com.openvstorage:demo"
    assert (target.policy, target.access, target.redirect) == (policy.OPEN, EVERYBODY, None)
    (only,) = target.maps
    assert only.luns[0].volume == "demo"
    assert only.luns[0].personality == Personality()
    (group,) = found.groups.values()
    assert (group.name, group.tag) == ("default", 1)
    assert [at.listen for at in group.portals] == [Address("127.0.0.1", 3260)]
    assert found.warnings == ()


def test_the_whole(tmp_path: Path) -> None:
    """Every table is where it belongs."""
    found = load(tmp_path, WHOLE)
    target = found.targets[IQN]
    assert target.groups == ("inner", "outer")
    assert [(group.tag, group.portals[-1].listen) for group in found.groups.values()] == [
        (1, Address("::1", 3260)),
        (7, Address("0.0.0.0", 3261)),
    ]
    assert found.groups["outer"].portals[0].advertise == Address("203.0.113.7", 3260)
    assert found.groups["outer"].discovery == target.policy
    assert target.policy is not None
    assert target.policy.methods == ("CHAP",)
    assert target.policy.accounts == {"alice": b"alice's long secret"}
    assert (target.policy.mutual_name, target.policy.mutual_secret) == ("target", b"our own long secret")
    special, everybody = target.maps
    assert special.initiators == ("iqn.1993-08.org.debian:01:x",)
    assert {number: lun.volume for number, lun in special.luns.items()} == {5: "b"}
    assert {number: (lun.volume, lun.is_read_only) for number, lun in everybody.luns.items()} == {
        0: ("disk", False),
        1: ("b", True),
    }
    assert everybody.luns[0].personality.logical_block_bytes == 4096
    assert "secret" not in repr(found)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('["inner", "outer"]', '"iner"', "target.disk.portal-group: there is no portal-group 'iner'; the nearest"),
        ('["inner", "outer"]', "[]", "a target without a portal can't be reached"),
        ('portal-group = ["inner", "outer"]', "", "target.disk.portal-group: which one? There are inner, outer"),
        ('\nauth-group = "lab"', '\nauth-group = "lap"', "target.disk.auth-group: there is no auth-group 'lap'; the n"),
        ('acl = "lab"', 'acl = "lap"', "target.disk.acl: there is no acl 'lap'; the nearest is 'lab'"),
        ('lun.0 = "disk"', 'lun.0 = "disc"', "target.disk.lun.0: there is no lun 'disc'; the nearest is 'disk'"),
        ('lun.0 = "disk"', 'lun.0 = "more"', "target.disk.lun.1: lun 'more' stands there twice"),
        ("lun.0", "lun.00", "target.disk.lun.00: a LUN is a number from 0 to 16383"),
        ("lun.0", "lun.16384", "target.disk.lun.16384: a LUN is a number"),
        ('volume = "b"', 'volume = "disk"', "lun.more: volume 'disk' is lun 'disk' already"),
        ('volume = "b"', 'volume = "B"', "lun.more.volume: 'B' is no name of a volume"),
        ("block-size = 4096", "block-size = 4096\nphysical-block-size = 512", "lun.disk: physical_block_bytes: 512"),
        ("block-size = 4096", 'naa = "1000000000000000"', "lun.disk: naa: 1000000000000000 is no NAA 2, 3 or 5"),
        ("[lun.more]", '[lun.third]\nnaa = "3AAAAAAAAAAAAAAA"\n[lun.more]\nnaa = "3aaaaaaaaaaaaaaa"',
         "lun.more.naa: lun 'third' has that name already"),
        ("[target.disk]", "[target.Disk]", "target.Disk: 'iqn.2024-05.com.example:Disk' is no iSCSI name"),
        ("[target.disk]", f'[target."{IQN}"]\nlun.0 = "more"\nportal-group = "inner"\n[target.disk]',
         "stands there twice"),
        ("[auth-group.lab]", "[portal-group.third]\ntag = 7\nlisten = ['::1']\n[auth-group.lab]",
         "portal-group.third.tag: portal-group 'outer' has tag 7 already"),
        ("0.0.0.0:3261", "[::1]:3260", "portal-group.outer.listen: portal-group 'inner' has [::1]:3260 already"),
        ('"[::1]:3260"', '"[::1]:0", "[::1]:0"', "portal-group.inner.listen: portal-group 'inner' has [::1]:0 already"),
        ("0.0.0.0:3261", "[::1:3260", "portal-group.outer.listen[0]: portal '[::1:3260': an IPv6 address is written"),
        ('advertise = ["203.0.113.7:3260"]', 'advertise = ["a", "b"]', "advertise: one address for each of 'listen'"),
        ("203.0.113.7:3260", "203.0.113.7:0", "advertise[0]: an initiator can't connect to 203.0.113.7:0"),
        ("203.0.113.7:3260", "0.0.0.0", "advertise[0]: an initiator can't connect to 0.0.0.0"),
        ("tag = 7", 'redirect = "[::]"', "portal-group.outer.redirect: an initiator can't connect to [::]"),
        ("192.0.2.0/24", "392.0.2.0/24", "acl.lab.networks[0]: '392.0.2.0/24' does not appear"),
        ("192.0.2.0/24", "192.0.2.1/24", "acl.lab.networks[0]: 192.0.2.1/24 has host bits set"),
        ("iqn.2020-01.com.example:Host", "host", "acl.lab.initiators[1]: 'host' is no iSCSI name"),
        ('discovery-auth-group = "lab"', 'discovery-auth-group = "x"', "there is no auth-group 'x'"),
        ("[auth-group.lab]", "[auth-group.no-access]\n[auth-group.lab]", "this name has its meaning already"),
        ("[auth-group.lab]", "[auth-group.empty]\n[auth-group.lab]", "auth-group.empty: there is no account in it"),
        ("lun.5", "lun.5 = 'disk'\n[[target.disk.map]]\ninitiators = ['iqn.1993-08.org.debian:01:X']\nlun.5",
         "target.disk.map[1].initiators: iqn.1993-08.org.debian:01:x has a map already"),
        ("[auth-group.lab]", '[auth-group.lab]\nalgorithms = ["MD5"]\nminimum-algorithm = "SHA-1"',
         "auth-group.lab.algorithms: none of them is SHA-1 or stronger"),
    ],
)  # fmt: skip
def test_what_contradicts_itself(tmp_path: Path, old: str, new: str, words: str) -> None:
    """Told with its place."""
    with pytest.raises(ConfigurationError) as refused:
        load(tmp_path, changed(old, new))
    assert str(refused.value).startswith(f"{tmp_path}/config.toml: ")
    assert words in str(refused.value)


def test_the_defaults_are_those_of_the_code(tmp_path: Path) -> None:
    """What is said twice is the same."""
    found = load(tmp_path, LEAST)
    assert found.timing == Timing()
    assert load(tmp_path, "session.nop-interval = 0\n" + LEAST).timing == Timing(nop_interval_s=0.0)
    with pytest.raises(ConfigurationError, match=r"session.nop-timeout: expected `float` > 0"):
        load(tmp_path, "session.nop-timeout = 0\n" + LEAST)


def test_no_target(tmp_path: Path) -> None:
    """There is nothing to serve: that is no configuration."""
    with pytest.raises(ConfigurationError, match=r"there is no \[target.NAME\]"):
        load(tmp_path, "")
    with pytest.raises(ConfigurationError, match=r"target.demo: it has no LUN"):
        load(tmp_path, changed('lun.0 = "demo"', "", LEAST))


def test_a_target_that_only_redirects_needs_no_lun(tmp_path: Path) -> None:
    found = load(tmp_path, '[target.demo]\nredirect = "192.0.2.9"')
    (target,) = found.targets.values()
    assert target.redirect == Address("192.0.2.9", 3260)


@pytest.mark.parametrize("listen", ["0.0.0.0", "[::]", "192.0.2.1", "[2001:db8::1]:3260", "storage.example"])
def test_open_to_everybody_must_be_said(tmp_path: Path, listen: str) -> None:
    """Beyond loopback, without CHAP and ACL: refused, or with --open a warning that names target and portal."""
    exposed = f'[portal-group.p]\nlisten = ["127.0.0.1", "{listen}"]\n' + LEAST
    with pytest.raises(ConfigurationError, match=r"is there for everybody who reaches .*, without CHAP or ACL.*--open"):
        load(tmp_path, exposed)
    for found in (load(tmp_path, exposed, is_open=True), load(tmp_path, "open = true\n" + exposed)):
        (warning,) = found.warnings
        assert "openvstorage:demo is there for everybody" in warning


@pytest.mark.parametrize("guard", ['auth-group = "no-access"', 'acl = "a"', 'redirect = "192.0.2.9"'])
def test_guarded_beyond_loopback(tmp_path: Path, guard: str) -> None:
    """What not everybody gets into needs no --open."""
    text = '[portal-group.p]\nlisten = ["0.0.0.0"]\n[acl.a]\nnetworks = ["10.0.0.0/8"]\n' + LEAST + guard
    assert load(tmp_path, text).warnings == ()


@pytest.mark.parametrize("listen", ["127.0.0.1", "127.1.2.3:1", "[::1]:9", "localhost:3260"])
def test_loopback_is_open(tmp_path: Path, listen: str) -> None:
    assert load(tmp_path, f'[portal-group.p]\nlisten = ["{listen}"]\n' + LEAST).warnings == ()


def test_algorithms_in_our_order(tmp_path: Path) -> None:
    """The order of the file, less what is weaker than the minimum."""
    text = changed(
        "[auth-group.lab]",
        '[auth-group.lab]\nalgorithms = ["SHA-1", "SHA3-256", "MD5", "SHA-256"]\nminimum-algorithm = "SHA-1"',
    )
    found = load(tmp_path, text).targets[IQN].policy
    assert found is not None
    assert found.algorithms == (policy.SHA_1, policy.SHA3_256, policy.SHA_256)


def test_access() -> None:
    """Both the name and the address must be allowed; case and a trailing * as documented."""
    found = Access(("iqn.a:one", "iqn.b:*"), ())
    assert found.allows("iqn.A:One", "192.0.2.1")
    assert found.allows("iqn.b:anything", "")
    assert not found.allows("iqn.a:onemore", "192.0.2.1")
    assert not found.allows("iqn.b", "192.0.2.1")
    assert EVERYBODY.allows("", "")


def test_access_by_address(tmp_path: Path) -> None:
    """IPv4 and IPv6 networks; a zone counts for nothing, and what is no address is let through nowhere."""
    found = load(tmp_path, WHOLE).targets[IQN].access
    name = "iqn.1993-08.org.debian:01:x"
    assert found.allows(name, "192.0.2.255")
    assert found.allows(name, "::1")
    assert not found.allows(name, "192.0.3.1")
    assert not found.allows(name, "fe80::1%eth0")
    assert not found.allows(name, "somewhere")
    assert not found.allows("iqn.2020-01.com.example:other", "192.0.2.255")


def test_names_are_whole_or_begin_so() -> None:
    assert is_among("iqn.x:1", ["*"])
    assert not is_among("iqn.x:1", ["iqn.x"])
    assert not is_among("iqn.x:1", [])


def test_configurations_are_values(tmp_path: Path) -> None:
    """The same file gives an equal one, another file another one: what reload goes by."""
    assert load(tmp_path, WHOLE) == load(tmp_path, WHOLE)
    assert load(tmp_path, WHOLE) != load(tmp_path, changed("read-only = true", "read-only = false"))
    assert LunMap({}) == LunMap({})


def test_how_good_a_way_a_portal_group_is(tmp_path: Path) -> None:
    """Its access state, whether it is preferred, and who may change that."""
    group = '[portal-group.a]\naccess = "non-optimized"\npreferred = true\n'
    found = load(tmp_path, group + '[lun.x]\n[target.t]\nexplicit-alua = true\nlun.0 = "x"\n')
    assert (found.groups["a"].access, found.groups["a"].is_preferred) == (AccessState.ACTIVE_NON_OPTIMIZED, True)
    (target,) = found.targets.values()
    assert target.may_set_access
    plain = load(tmp_path, LEAST)
    assert plain.groups["default"].access is AccessState.ACTIVE_OPTIMIZED
    assert not any(target.may_set_access for target in plain.targets.values())


@pytest.mark.parametrize("lets_all", ['initiators = ["*"]', 'networks = ["0.0.0.0/0", "::/0"]', ""])
def test_an_acl_that_keeps_nobody_out_guards_nothing(tmp_path: Path, lets_all: str) -> None:
    """It is as open as none, and must be said as such."""
    text = f'[portal-group.default]\nlisten = ["0.0.0.0"]\n[acl.all]\n{lets_all}\n{LEAST}acl = "all"\n'
    with pytest.raises(ConfigurationError, match="without CHAP or ACL"):
        load(tmp_path, text)
