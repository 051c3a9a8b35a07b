"""Another configuration under living sessions: the difference is applied, and nobody else is touched."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from iscsi_ovs.commands import registrations
from iscsi_ovs.commands.registrations import Registrant, Registrations, Type
from iscsi_ovs.config.configuration import Configuration
from iscsi_ovs.errors import ConfigurationError
from iscsi_ovs.net.portal import Address
from iscsi_ovs.targets.reload import Reload
from iscsi_ovs.testing.chap import Chap
from tests.config.files import changed, load
from tests.targets.house import Client, House, kept

PREFIX = "iqn.2016-01.com.openvstorage:"
HOST_A, HOST_B = "iqn.2020-01.com.example:a", "iqn.2020-01.com.example:b"

TEXT = f"""\
[portal-group.inner]
listen = ["127.0.0.1:3260"]
[portal-group.outer]
listen = ["127.0.0.2:3261"]
[auth-group.chap]
[[auth-group.chap.chap]]
user = "alice"
secret = "alice's long secret"
[acl.friends]
initiators = ["{HOST_A}", "{HOST_B}"]
[lun.one]
[lun.two]
[lun.three]
[target.disk]
portal-group = ["inner", "outer"]
acl = "friends"
lun.0 = "one"
lun.1 = "two"
[target.other]
portal-group = "inner"
lun.0 = "two"
"""


class Reloaded(House):
    def __init__(self, directory: Path) -> None:
        self.directory = directory
        super().__init__(configuration=load(directory, TEXT), volumes="one two three")

    def reload(self, old: str, new: str) -> list[str]:
        changes = self.target.configure(load(self.directory, changed(old, new, TEXT)))
        self.run()
        return changes

    def log_in(self, target: str = "disk", name: str = HOST_A, at: Address | None = None, lun: int = 0) -> Client:
        client = self.client(name=name, at=at or Address("127.0.0.1", 3260))
        client.initiator.login(PREFIX + target)
        self.run()
        assert client.initiator.is_logged_in, client.initiator.login_status
        for each in client.luns():
            client.attentions(each)
        return client


@pytest.fixture
def house(tmp_path: Path) -> Iterator[Reloaded]:
    house = Reloaded(tmp_path)
    for _ in kept(house):
        yield house


def test_a_mistake_of_ours_costs_no_session() -> None:
    """Whatever goes wrong in a reload is an answer to who asked for it: it never ends the loop that it runs in."""

    def fails() -> Configuration:
        raise ZeroDivisionError

    reload = Reload(fails, lambda configuration: [])
    with pytest.raises(ConfigurationError, match="a mistake of ours"):
        reload.now()
    reload.hung_up()


def test_nothing_is_different(house: Reloaded) -> None:
    """No change, no attention, no reopening."""
    client = house.log_in()
    opens = house.service.opens
    assert house.target.configure(load(house.directory, TEXT)) == []
    assert client.attentions() == []
    assert house.service.opens == opens


def test_a_lun_is_added_and_another_session_hears_nothing(house: Reloaded) -> None:
    """Sessions of that target hear 3F/0E on the LUNs they have, and can use the new one; others go on."""
    client, other = house.log_in(), house.log_in("other", HOST_B)
    flying = other.write(0, b"o" * 4096)
    assert house.reload("lun.1", 'lun.7 = "three"\nlun.1') == [
        f"target {PREFIX}disk changed",
        f"LUN 7 of {PREFIX}disk added: three",
    ]
    assert other.do(flying).status == scsi.GOOD
    assert other.attentions() == []
    assert client.attentions(0) == [(0x3F, 0x0E)]
    assert client.attentions(1) == [(0x3F, 0x0E)]
    assert client.luns() == [0, 1, 7]
    assert client.attentions(7) == [(0x29, 0x00)]
    assert client.do(client.write(0, b"3" * 512, lun=7)).status == scsi.GOOD


def test_a_lun_is_removed(house: Reloaded) -> None:
    """It answers as LUNs do that are not there; what was under way ends well, then its volume is let go."""
    client, other = house.log_in(), house.log_in("other", HOST_B)
    held = [handle for handle in house.service.handles if handle.info.name == "two"]
    for handle in held:
        handle.hold()
    flying, others = client.write(0, b"f" * 512, lun=1), other.write(8, b"o" * 512)
    house.run()
    assert house.reload('lun.1 = "two"\n', "")[1:] == [f"LUN 1 of {PREFIX}disk removed: two"]
    assert client.luns() == [0]
    assert client.do(client.read(0, 1, lun=1)).additional_sense == (0x25, 0x00)
    for handle in held:
        handle.let_go()
    assert client.do(flying).status == scsi.GOOD
    assert other.do(others).status == scsi.GOOD
    house.target.tick(house.now)
    house.run()
    assert sorted(handle.info.name for handle in house.service.handles) == ["one", "two"]
    assert other.attentions() == []


def test_a_lun_is_another_volume(house: Reloaded) -> None:
    """The number stays; behind it is another disk, and the initiator is told."""
    client = house.log_in()
    client.do(client.write(0, b"2" * 512, lun=1))
    house.reload('lun.1 = "two"', 'lun.1 = "three"')
    assert (0x3F, 0x0E) in client.attentions(0)
    assert client.attentions(1) == [(0x29, 0x00)]
    assert bytes(client.do(client.read(0, 1, lun=1)).data) == bytes(512)


def test_a_disk_is_another_kind(house: Reloaded) -> None:
    """4096-byte blocks from now on, in every map, on the same bytes."""
    client, other = house.log_in(), house.log_in("other", HOST_B)
    client.do(client.write(0, b"2" * 512, lun=1))
    changes = house.reload("[lun.two]", "[lun.two]\nblock-size = 4096")
    assert changes[0] == "volume two is another kind of disk now"
    for each, lun in ((client, 1), (other, 0)):
        assert each.attentions(lun)
        capacity = each.do(each.initiator.command(b"\x25" + bytes(9), read=8, lun=lun)).data
        assert int.from_bytes(capacity[4:], "big") == 4096
        read = each.initiator.command(bytes.fromhex("28000000000000000100"), read=4096, lun=lun)
        assert bytes(each.do(read).data) == b"2" * 512 + bytes(4096 - 512)
    assert client.attentions(0) == [(0x3F, 0x0E)]


def test_a_lun_becomes_read_only(house: Reloaded) -> None:
    """It is opened again, for reading."""
    client = house.log_in()
    house.reload('lun.1 = "two"', 'lun.1 = { lun = "two", read-only = true }')
    client.attentions(1)
    assert client.do(client.write(0, b"2" * 512, lun=1)).additional_sense == (0x27, 0x00)
    assert sorted((handle.info.name, handle.access) for handle in house.service.handles) == [
        ("one", "rw"),
        ("two", "r"),
    ]


def test_who_is_not_allowed_any_more_is_ended(house: Reloaded) -> None:
    """And nobody else; the next login is refused."""
    gone, stays = house.log_in(name=HOST_A), house.log_in(name=HOST_B)
    changes = house.reload(f'"{HOST_A}", ', "")
    assert changes[1:] == [f"session of {HOST_A} with {PREFIX}disk ended: it is not allowed any more"]
    assert gone.connection.is_closed
    assert stays.do(stays.read(0, 1)).status == scsi.GOOD
    late = house.client(name=HOST_A)
    late.initiator.login(PREFIX + "disk")
    house.run()
    assert late.initiator.login_status == (2, 2)


def test_an_acl_is_removed(house: Reloaded) -> None:
    """Who is in stays in, and everybody else may come."""
    client = house.log_in()
    house.reload('acl = "friends"\n', "")
    assert client.attentions() == []
    assert house.log_in(name="iqn.2020-01.com.example:c").initiator.is_logged_in


def test_authentication_is_for_the_next_login(house: Reloaded) -> None:
    """Who is in stays in; who comes proves itself."""
    client = house.log_in("other")
    house.reload('portal-group = "inner"\n', 'portal-group = "inner"\nauth-group = "chap"\n')
    assert client.do(client.read(0, 1)).status == scsi.GOOD
    late = house.client(name=HOST_B)
    late.initiator.login(PREFIX + "other")
    house.run()
    assert late.initiator.login_status == (2, 1)
    proven = house.client(name=HOST_B)
    proven.initiator.login(PREFIX + "other", chap=Chap("alice", b"alice's long secret"))
    house.run()
    assert proven.initiator.is_logged_in


def test_timing_is_for_the_next_connection(house: Reloaded) -> None:
    """Who is in keeps what it came with."""
    before = house.log_in()
    house.reload("[lun.one]", "[session]\nnop-interval = 5\n[lun.one]")
    after = house.log_in(name=HOST_B)
    assert before.connection.timing.nop_interval_s == 30.0
    assert after.connection.timing.nop_interval_s == 5.0


def test_targets_come_and_go(house: Reloaded) -> None:
    """One is renamed: the old name's sessions end, the new name can be logged in to; the other target goes on."""
    gone, stays = house.log_in("other"), house.log_in()
    assert house.reload("[target.other]", "[target.new]") == [
        f"target {PREFIX}other removed",
        f"target {PREFIX}new added",
    ]
    assert gone.connection.is_closed
    assert stays.attentions() == []
    assert house.log_in("new").luns() == [0]


def test_portals_come_and_go(house: Reloaded) -> None:
    """Where there is no portal any more no connection is accepted; sessions that came there live on."""
    outer, new = Address("127.0.0.2", 3261), Address("127.0.0.3", 3262)
    client = house.log_in(at=outer)
    assert house.reload("127.0.0.2:3261", "127.0.0.3:3262") == [f"portal {outer} removed", f"portal {new} added"]
    assert house.driver.listening == {Address("127.0.0.1", 3260), new}
    assert client.do(client.read(0, 1)).status == scsi.GOOD
    assert house.log_in(at=new, name=HOST_B).initiator.is_logged_in


def test_a_target_leaves_a_portal_group(house: Reloaded) -> None:
    """Sessions that came in there end: their target port is gone."""
    inner, outer = house.log_in(), house.log_in(at=Address("127.0.0.2", 3261))
    house.reload('["inner", "outer"]', '"inner"')
    assert outer.connection.is_closed
    assert inner.attentions() == [(0x3F, 0x03)], "INQUIRY tells of one port now"
    assert inner.do(inner.read(0, 1)).status == scsi.GOOD


def test_an_initiator_gets_a_map_of_its_own(house: Reloaded) -> None:
    """Its session ends, and the next one sees the other LUNs; others keep what they have."""
    own, other = house.log_in(name=HOST_A), house.log_in(name=HOST_B)
    own_map = f'\n[[target.disk.map]]\ninitiators = ["{HOST_A}"]\nlun.9 = "three"\n[target.other]'
    house.reload("\n[target.other]", own_map)
    assert own.connection.is_closed
    assert other.attentions() == []
    assert house.log_in(name=HOST_A).luns() == [9]


def test_an_initiator_comes_to_a_map_that_others_have(house: Reloaded) -> None:
    """Who has the map keeps its session and its LUNs, in whatever order the maps stand; who leaves it, does not."""
    own_map = f'\n[[target.disk.map]]\ninitiators = ["{HOST_A}"]\nlun.9 = "three"\n'
    house.reload("\n[target.other]", own_map + "[target.other]")
    own, other = house.log_in(name=HOST_A), house.log_in(name=HOST_B)
    assert own.luns() == [9]
    shared = own_map.replace(f'"{HOST_A}"', f'"{HOST_B}", "{HOST_A}"')
    before = '\n[[target.disk.map]]\ninitiators = ["iqn.2020-01.com.example:c"]\nlun.9 = "one"\n'
    house.reload("\n[target.other]", before + shared + "lun.10 = 'two'\n[target.other]")
    assert not own.connection.is_closed
    assert other.connection.is_closed
    assert own.luns() == house.log_in(name=HOST_B).luns() == [9, 10]
    house.reload("\n[target.other]", own_map.replace(HOST_A, HOST_B) + "[target.other]")
    assert own.connection.is_closed
    assert house.log_in(name=HOST_A).luns() == [0, 1]


@pytest.mark.parametrize("taken", ["127.0.0.3:3262", "127.0.0.4:3261"])
def test_a_portal_that_can_not_be_had_refuses_all(house: Reloaded, taken: str) -> None:
    """The old configuration goes on, its portals too, even those that had given way."""
    client = house.log_in()
    before = set(house.driver.listening)
    host, _, port = taken.partition(":")
    house.driver.taken = {Address(host, int(port))}
    with pytest.raises(ConfigurationError, match=f"portal {taken} is taken"):
        house.reload("127.0.0.2:3261", f'127.0.0.9:3261", "{taken}')
    assert house.driver.listening == before
    assert client.do(client.read(0, 1)).status == scsi.GOOD
    assert house.log_in(at=Address("127.0.0.2", 3261), name=HOST_B).initiator.is_logged_in


def test_a_login_under_way_when_its_map_changes(house: Reloaded) -> None:
    """It is asked to come again, and sees what is there then; or it is let in with all that has come."""
    house.service.holds_opens = True
    client = house.client(name=HOST_A)
    client.initiator.login(PREFIX + "disk")
    house.run()
    house.reload("lun.1", 'lun.7 = "three"\nlun.1')
    house.service.holds_opens = False
    house.run()
    assert client.initiator.is_logged_in
    assert client.luns() == [0, 1, 7]
    house.service.holds_opens = True
    late = house.client(name=HOST_B)
    late.initiator.login(PREFIX + "disk")
    house.run()
    house.reload("lun.1", "lun.8")
    assert late.initiator.login_status == (3, 1)
    house.service.holds_opens = False
    house.run()
    assert house.log_in(name=HOST_B).luns() == [0, 8]


@pytest.mark.parametrize(
    ("old", "new", "status"),
    [
        (f'["{HOST_A}", ', "[", (2, 2)),
        ('lun.0 = "one"', 'auth-group = "chap"\nlun.0 = "one"', (3, 1)),
        ('lun.0 = "one"', 'redirect = "192.0.2.9"\nlun.0 = "one"', (1, 1)),
        ("[target.disk]", "[target.new]", (2, 3)),
        ('["inner", "outer"]', '"outer"', (2, 3)),
        ("[portal-group.inner]", '[portal-group.first]\nlisten = ["127.0.0.9:1"]\n[portal-group.inner]', (2, 3)),
    ],
)
def test_a_login_that_began_before_the_reload(house: Reloaded, old: str, new: str, status: tuple[int, int]) -> None:
    """What was right at its first text does not let it in any more: who takes his time gains nothing by it."""
    client = house.client(name=HOST_A)
    client.initiator.login(PREFIX + "disk")
    client.move()  # who it is and whom it wants
    assert client.initiator.login_status == (0, 0)
    house.reload(old, new)
    assert not client.initiator.is_logged_in
    assert client.initiator.login_status == status
    assert client.connection.is_closed


def test_reload_while_the_volume_server_is_away(house: Reloaded) -> None:
    """LUNs come when it is back."""
    client = house.log_in()
    house.service.lose()
    house.run()
    house.reload("lun.1", 'lun.7 = "three"\nlun.1')
    house.restart()
    house.run()
    house.pass_time(1.5)
    house.run()
    assert client.luns() == [0, 1, 7]
    client.attentions(7)
    assert client.do(client.read(0, 1, lun=7)).status == scsi.GOOD


def test_an_access_state_is_another(house: Reloaded) -> None:
    """An operator puts a portal group in standby: its initiators and those of the other path hear of it, and go on."""
    here, there = house.log_in(), house.log_in(at=Address("127.0.0.2", 3261), name=HOST_B)
    standby = 'listen = ["127.0.0.1:3260"]\naccess = "standby"\n'
    assert house.reload('listen = ["127.0.0.1:3260"]\n', standby) == [
        f"portal group inner of {PREFIX}disk is standby now",
        f"portal group inner of {PREFIX}other is standby now",
    ]
    assert here.attentions() == there.attentions() == [(0x2A, 0x06)]
    assert here.do(here.read(0, 1)).additional_sense == (0x04, 0x0B)
    assert there.do(there.read(0, 1)).status == scsi.GOOD
    assert house.reload("[lun.one]", "[lun.one]") == [
        f"portal group inner of {PREFIX}disk is active optimized now",
        f"portal group inner of {PREFIX}other is active optimized now",
    ]
    here.attentions()
    assert here.do(here.read(0, 1)).status == scsi.GOOD


def test_a_portal_group_more(house: Reloaded) -> None:
    """It is a target port more, for those who are there already, too: what INQUIRY says has changed."""
    client = house.log_in("other", HOST_B)
    (nexus,) = house.target.nodes.find(PREFIX + "other").ports.nexuses.values()  # type: ignore[union-attr]
    assert list(nexus.ports.groups) == [1]
    old = '[target.other]\nportal-group = "inner"'
    house.reload(old, '[target.other]\nportal-group = ["outer", "inner"]\nexplicit-alua = true')
    assert list(nexus.ports.groups) == [1, 2]
    assert nexus.ports.can_set
    assert client.attentions() == [(0x3F, 0x03)]


def test_another_kind_of_disk_while_its_records_are_read(house: Reloaded) -> None:
    """It is another unit, and reads them for itself: nobody gets in past a reservation that it does not know of."""
    owner = Registrant(HOST_B, b"\x80\0\0\0\0\1", PREFIX + "other", 1, 1)
    reserved = Registrations(1, {owner: 7}, Type.WRITE_EXCLUSIVE, owner, aptpl=True)
    house.service.records["two", "reservations"] = (3, registrations.encode(registrations.Change(reserved), "before"))
    house.service.holds_records = True
    early = house.client(name=HOST_A)
    early.initiator.login(PREFIX + "other")
    house.run()
    house.reload("[lun.two]", "[lun.two]\nblock-size = 4096")
    late = house.client(name=HOST_A, isid=b"\x80\0\0\0\0\2")
    late.initiator.login(PREFIX + "other")
    house.run()
    house.service.holds_records = False
    house.run()
    assert early.initiator.login_status == (3, 1)
    assert late.initiator.is_logged_in
    late.attentions()
    assert late.do(late.write(0, bytes(4096))).status == scsi.RESERVATION_CONFLICT
