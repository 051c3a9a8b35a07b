"""Nodes of a configuration, without processes: who gets in where, what is told of portals, which LUNs who sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from iscsi_ovs import pdu, scsi
from iscsi_ovs.net.portal import Address
from iscsi_ovs.testing.chap import Chap
from shm_server.abi import control
from tests.config.files import load
from tests.targets.house import Client, House, info_of, kept, uuid_of

PREFIX = "iqn.2016-01.com.openvstorage:"
HOST_A, HOST_B = "iqn.2020-01.com.example:a", "iqn.2020-01.com.example:b"
INNER, OUTER, SIX = Address("127.0.0.1", 3260), Address("0.0.0.0", 3261), Address("::1", 3260)

TEXT = f"""\
open = true
[portal-group.inner]
listen = ["127.0.0.1:3260", "[::1]:3260"]
[portal-group.outer]
tag = 7
listen = ["0.0.0.0:3261", "0.0.0.0:3262"]
[auth-group.chap]
[[auth-group.chap.chap]]
user = "alice"
secret = "alice's long secret"
[acl.a]
initiators = ["{HOST_A}"]
[acl.near]
networks = ["127.0.0.0/8", "::1"]
target-reset = false
[lun.one]
[lun.two]
block-size = 4096
[lun.frozen]
read-only = true
[target.both]
portal-group = ["inner", "outer"]
lun.0 = "one"
lun.3 = {{ lun = "two", read-only = true }}
lun.4 = "frozen"
[[target.both.map]]
initiators = ["{HOST_B}"]
lun.0 = "two"
[target.private]
portal-group = "inner"
acl = "a"
lun.0 = "two"
[target.near]
portal-group = "outer"
acl = "near"
lun.0 = "one"
[target.secret]
portal-group = "inner"
auth-group = "chap"
lun.0 = "one"
[target.closed]
portal-group = "inner"
auth-group = "no-access"
lun.0 = "one"
[target.moved]
portal-group = "inner"
redirect = "192.0.2.9:3333"
"""


@pytest.fixture
def house(tmp_path: Path) -> Iterator[House]:
    yield from kept(House(configuration=load(tmp_path, TEXT), volumes="one two frozen unmapped"))


@pytest.fixture
def login(house: House) -> Callable[..., Client]:
    def log_in(target: str | None, at: Address = INNER, host: str = "127.0.0.1", **options: Any) -> Client:
        chap = options.pop("chap", None)
        client = house.client(at=at, host=host, **options)
        client.initiator.login(None if target is None else PREFIX + target, chap=chap)
        house.run()
        return client

    return log_in


Login = Callable[..., Client]


def test_several_luns(house: House, login: Login) -> None:
    """A session has a handle for each; each LUN is its own disk, of its own kind."""
    client = login("both")
    assert client.luns() == [0, 3, 4]
    for lun in (0, 3, 4):
        assert client.attentions(lun) == [(0x29, 0x00)]
    assert client.do(client.write(8, b"1" * 512)).status == scsi.GOOD
    assert bytes(client.do(client.read(8, 1)).data) == b"1" * 512
    assert bytes(house.service.bytes_of[uuid_of("one")][4096:4608]) == b"1" * 512
    capacity = client.do(client.initiator.command(b"\x25" + bytes(9), read=8, lun=3)).data
    assert bytes(capacity)[4:] == (4096).to_bytes(4, "big")
    assert sorted((handle.info.name, handle.access) for handle in house.service.handles) == [
        ("frozen", "r"),
        ("one", "rw"),
        ("two", "r"),
    ]


@pytest.mark.parametrize("lun", [3, 4])
def test_read_only_luns(login: Login, lun: int) -> None:
    """DATA PROTECT, and the WP bit; whether the disk is so, or only this map."""
    client = login("both")
    client.attentions(lun)
    write = client.initiator.command(bytes.fromhex("2a000000000000000100"), write=bytes(4096), lun=lun)
    assert client.do(write).additional_sense == (0x27, 0x00)
    mode = client.do(client.initiator.command(bytes.fromhex("1a083f00ff00"), read=255, lun=lun)).data
    assert mode[2] & 0x80
    assert client.do(client.read(0, 8, lun=lun)).status == scsi.GOOD


def test_read_only_in_one_map_is_writable_in_another(login: Login) -> None:
    """One unit under two numbers in two maps; the one's protection is not the other's."""
    reader, writer = login("both"), login("both", name=HOST_B)
    assert writer.luns() == [0]
    writer.attentions()
    reader.attentions(3)
    write = writer.initiator.command(bytes.fromhex("2a000000000000000100"), write=b"w" * 4096)
    assert writer.do(write).status == scsi.GOOD
    read = reader.initiator.command(bytes.fromhex("28000000000000000100"), read=4096, lun=3)
    assert bytes(reader.do(read).data) == b"w" * 4096


def test_a_reset_reaches_a_unit_in_every_map(login: Login) -> None:
    """LOGICAL UNIT RESET of LUN 0 there is heard at LUN 3 here."""
    reader, writer = login("both"), login("both", name=HOST_B)
    reader.attentions(3)
    writer.attentions()
    assert writer.do(writer.initiator.tmf(pdu.LOGICAL_UNIT_RESET)).response == pdu.FUNCTION_COMPLETE
    assert reader.attentions(3) == [(0x29, 0x03)]
    assert reader.attentions(0) == [(0x29, 0x00)]


def test_target_reset_as_the_acl_says(login: Login) -> None:
    """TARGET WARM RESET is refused to who may not; the same function is done for who may."""
    near, both = login("near", OUTER), login("both")
    near.attentions()
    refused = near.do(near.initiator.tmf(pdu.TARGET_WARM_RESET))
    assert refused.response in (pdu.FUNCTION_REJECTED, pdu.FUNCTION_AUTHORIZATION_FAILED)
    assert both.do(both.initiator.tmf(pdu.TARGET_WARM_RESET)).response == pdu.FUNCTION_COMPLETE


# Getting in ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "options", "status"),
    [
        ("both", {}, (0, 0)),
        ("both", {"at": OUTER, "host": "198.51.100.7"}, (0, 0)),
        ("private", {"name": HOST_A}, (0, 0)),
        ("private", {"name": HOST_B}, (2, 2)),
        ("private", {"name": HOST_A, "at": OUTER}, (2, 3)),
        ("near", {"at": OUTER}, (0, 0)),
        ("near", {"at": OUTER, "host": "198.51.100.7"}, (2, 2)),
        ("near", {"at": INNER}, (2, 3)),
        ("closed", {}, (2, 2)),
        ("missing", {}, (2, 3)),
        ("secret", {}, (2, 1)),
        ("secret", {"chap": Chap("alice", b"not her long secret")}, (2, 1)),
        ("secret", {"chap": Chap("alice", b"alice's long secret")}, (0, 0)),
        ("moved", {}, (1, 1)),
    ],
)
def test_who_gets_in(login: Login, target: str, options: dict[str, Any], status: tuple[int, int]) -> None:
    """Status-Class and Status-Detail, by target, portal, name, address and secret."""
    client = login(target, **options)
    assert client.initiator.login_status == status
    assert client.initiator.is_logged_in == (status == (0, 0))


def test_a_redirection_says_where_to(login: Login) -> None:
    """Section 11.13.5: 0101 comes with a TargetAddress, without a tag."""
    client = login("moved")
    response = client.initiator.received[-1]
    assert response.data.rstrip(b"\0") == b"TargetAddress=192.0.2.9:3333"


def test_no_more_sessions_than_allowed(house: House, login: Login) -> None:
    """0302, and the next one gets in when one has gone."""
    house.target.members.limit = 2
    first = login("both")
    login("both", isid=b"\x80\0\0\0\0\2")
    late = login("both", isid=b"\x80\0\0\0\0\3")
    assert late.initiator.login_status == (3, 2)
    again = login("both", isid=b"\x80\0\0\0\0\2")
    assert again.initiator.is_logged_in, "its old session, perhaps a dead one, makes room"
    curious = house.client()
    curious.initiator.login(None)
    house.run()
    assert curious.initiator.login_status == (3, 2), "discovery counts, too"
    first.lose()
    house.run()
    assert login("both", isid=b"\x80\0\0\0\0\3").initiator.is_logged_in


def test_one_port_at_two_portal_groups(login: Login) -> None:
    """Section 4.4.1: the same ISID is another nexus at another portal group, and the same one at another portal."""
    inner, outer = login("both"), login("both", OUTER)
    assert not inner.connection.is_closed
    six = login("both", SIX, host="::1")
    assert inner.connection.is_closed
    assert not outer.connection.is_closed
    data = outer.do(outer.initiator.command(bytes.fromhex("12018300ff00"), read=255)).data
    assert f"{PREFIX}both,t,0x0007".encode() in bytes(data)
    assert six.initiator.is_logged_in


# SendTargets -----------------------------------------------------------------------------------------------------


def test_send_targets_on_loopback(login: Login) -> None:
    """What is at this portal group and open to this initiator, with all portals of it."""
    client = login(None)
    assert client.send_targets() == {
        PREFIX + "both": [
            "127.0.0.1:3260,1", "[::1]:3260,1", "127.0.0.1:3261,7", "127.0.0.1:3262,7",
        ],
        PREFIX + "moved": ["127.0.0.1:3260,1", "[::1]:3260,1"],
        PREFIX + "secret": ["127.0.0.1:3260,1", "[::1]:3260,1"],
    }  # fmt: skip
    assert PREFIX + "private" in login(None, name=HOST_A).send_targets()


def test_send_targets_from_elsewhere(house: House) -> None:
    """Nobody elsewhere is told of loopback; a portal that listens everywhere is where the initiator reached it."""
    client = house.client(at=OUTER, host="198.51.100.7")
    client.connection.local = Address("203.0.113.1", 3261)
    client.initiator.login(None)
    house.run()
    assert client.send_targets() == {PREFIX + "both": ["203.0.113.1:3261,7", "203.0.113.1:3262,7"]}


def test_send_targets_by_ipv6(login: Login) -> None:
    """What listens on 0.0.0.0 is not to be had at the address that the initiator came to."""
    client = login(None, SIX, host="::1")
    assert client.send_targets()[PREFIX + "both"] == ["127.0.0.1:3260,1", "[::1]:3260,1"]


def test_send_targets_in_a_normal_session(login: Login) -> None:
    """Its own target alone."""
    client = login("both", OUTER, host="198.51.100.7")
    assert list(client.send_targets("")) == [PREFIX + "both"]


# Volumes come and go ---------------------------------------------------------------------------------------------


def test_a_lun_comes_with_its_volume(house: House, login: Login) -> None:
    """Not there at first; living sessions hear of it when they can use it, and other sessions hear nothing."""
    del house.service.infos["two"]
    house.service.on_event(control.VolumeRemoved(1, "two", uuid_of("two")))
    client, other = login("both"), login("near", OUTER)
    assert client.luns() == [0, 4]
    client.attentions()
    other.attentions()
    house.service.infos["two"] = info_of("two", uuid_of("two"))
    house.service.on_event(control.VolumeCreated(2, house.service.infos["two"]))
    house.run()
    assert client.attentions() == [(0x3F, 0x0E)]
    assert other.attentions() == []
    assert client.luns() == [0, 3, 4]
    assert client.attentions(3) == [(0x29, 0x00)]
    assert client.do(client.read(0, 8, lun=3)).status == scsi.GOOD


def test_a_lun_goes_with_its_volume(house: House, login: Login) -> None:
    """The session and its other LUNs live on; what is under way on the LUN ends as it would have."""
    client = login("both")
    for lun in (0, 3, 4):
        client.attentions(lun)
    handle = next(handle for handle in house.service.handles if handle.info.name == "two")
    handle.hold()
    flying = client.read(0, 8, lun=3)
    house.run()
    del house.service.infos["two"]
    house.service.on_event(control.VolumeRemoved(1, "two", uuid_of("two")))
    assert client.attentions() == [(0x3F, 0x0E)]
    assert client.do(client.read(0, 8, lun=3)).additional_sense == (0x25, 0x00)
    assert not handle.is_closed
    handle.let_go()
    assert client.do(flying).status == scsi.GOOD
    house.target.tick(house.now)
    house.run()
    assert handle.is_closed
    assert client.luns() == [0, 4]


def test_a_lun_that_can_not_be_opened_yet(house: House, login: Login) -> None:
    """It is in no map before it can be used; tried again once a second."""
    del house.service.infos["two"]
    house.service.on_event(control.VolumeRemoved(1, "two", uuid_of("two")))
    client = login("both")
    client.attentions()
    house.service.open_error = OSError(16, "held by qemu pid 7")
    house.service.infos["two"] = info_of("two", uuid_of("two"))
    house.service.on_event(control.VolumeCreated(2, house.service.infos["two"]))
    assert client.luns() == [0, 4]
    house.service.open_error = None
    house.pass_time(1.5)
    house.run()
    assert client.attentions() == [(0x3F, 0x0E)]
    assert client.luns() == [0, 3, 4]


def test_a_login_while_one_volume_is_held_by_somebody_else(house: House, login: Login) -> None:
    """The other LUNs are there; that one is NOT READY until it can be had, and then it says that it has become so."""
    house.service.held = {"two"}
    client, other = login("both"), login("near", OUTER)
    assert client.luns() == [0, 3, 4]
    client.attentions()
    other.attentions()
    assert client.do(client.write(0, b"1" * 512)).status == scsi.GOOD
    assert client.attentions(3) == [(0x29, 0x00)]
    assert client.do(client.read(0, 8, lun=3)).additional_sense == (0x04, 0x00)
    house.pass_time(1.5)
    house.run()
    assert client.do(client.read(0, 8, lun=3)).additional_sense == (0x04, 0x00)
    house.service.held = set()
    house.pass_time(1.5)
    house.run()
    assert client.attentions(3) == [(0x28, 0x00)]
    assert client.do(client.read(0, 8, lun=3)).status == scsi.GOOD
    assert other.attentions() == []


def test_a_login_while_all_volumes_are_held(house: House, login: Login) -> None:
    """Service unavailable, by name; nothing is left of it."""
    house.service.held = {"one", "two", "frozen"}
    assert login("both").initiator.login_status == (3, 1)
    house.service.held = set()
    assert login("both").luns() == [0, 3, 4]


def test_the_server_dies_while_a_lun_comes(house: House, login: Login) -> None:
    """Nothing is left half-way: the LUN comes with the next server."""
    del house.service.infos["two"]
    house.service.on_event(control.VolumeRemoved(1, "two", uuid_of("two")))
    client = login("both")
    client.attentions()
    house.service.holds_opens = True
    house.service.infos["two"] = info_of("two", uuid_of("two"))
    house.service.on_event(control.VolumeCreated(2, house.service.infos["two"]))
    house.service.lose()
    house.service.holds_opens = False
    house.restart()
    house.run()
    house.pass_time(1.5)
    house.run()
    assert client.luns() == [0, 3, 4]
    for lun in (0, 3, 4):
        client.attentions(lun)
        assert client.do(client.read(0, 8, lun=lun)).status == scsi.GOOD
    assert len(house.service.handles) == 3


def test_a_session_leaves_while_its_lun_goes(house: House, login: Login) -> None:
    """All handles are closed, the one on its way out too."""
    client = login("both")
    client.attentions(3)
    handle = next(handle for handle in house.service.handles if handle.info.name == "two")
    handle.hold()
    client.read(0, 8, lun=3)
    house.run()
    house.service.on_event(control.VolumeRemoved(1, "two", uuid_of("two")))
    client.lose()
    house.run()
    handle.let_go()
    house.run()
    assert house.service.handles == []
    assert house.target.members.is_empty


def test_a_server_that_dies_with_several_luns(house: House, login: Login) -> None:
    """Each is BUSY until the session has all of its own handle back; a LUN that can be had is not kept waiting."""
    client = login("both")
    for lun in (0, 3, 4):
        client.attentions(lun)
    house.service.lose()
    house.run()
    assert client.do(client.read(0, 8, lun=4)).status == scsi.BUSY
    house.restart()
    house.run()
    for lun in (0, 3, 4):
        assert client.do(client.read(0, 8, lun=lun)).status == scsi.GOOD
    assert len(house.service.handles) == 3
