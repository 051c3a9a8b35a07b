"""Anything at any time: reloads, volumes, sessions and the volume server come and go in random order.

Whatever happened: when it is quiet again every session that lives sees what the configuration wants and the volume
server has, can use all of it, and nothing is held that nobody uses.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from iscsi_ovs import scsi
from shm_server.abi import control
from tests.config.files import load
from tests.targets.house import Client, House, info_of, kept, uuid_of

PREFIX = "iqn.2016-01.com.openvstorage:"
VOLUMES = ("a", "b", "c", "d")
HOSTS = tuple(f"iqn.2020-01.com.example:{number}" for number in range(3))
TARGETS = ("one", "two")
STEPS = 120
KINDS = (*["reload"] * 2, *["login"] * 2, "leave", *["io"] * 3, "volume", "grow", "server", "hold", "time")


class Storm:
    def __init__(self, directory: Path, seed: int) -> None:
        self.directory = directory
        self.chance = random.Random(seed)
        self.wanted: dict[str, dict[int, str]] = {}
        self.allowed: set[str] = set(HOSTS)
        self.house = House(configuration=load(directory, self.text()), volumes=" ".join(VOLUMES))
        self.sequence = 0

    @property
    def living(self) -> list[Client]:
        return [client for client in self.house.clients if not client.connection.is_closed]

    def text(self) -> str:
        """A configuration, and what it comes to is in ``wanted``."""
        chance = self.chance
        lines = [f"[lun.{name}]\nblock-size = {chance.choice((512, 512, 512, 4096))}" for name in VOLUMES]
        self.allowed = set(chance.sample(HOSTS, chance.randint(1, 3)))
        lines.append("[acl.some]\ninitiators = [" + ", ".join(f'"{name}"' for name in sorted(self.allowed)) + "]")
        self.wanted = {}
        for target in chance.sample(TARGETS, chance.choice((1, 2, 2, 2))):
            volumes = chance.sample(VOLUMES, chance.randint(1, 3))
            luns = dict(zip(chance.sample(range(4), len(volumes)), volumes, strict=True))
            self.wanted[target] = luns
            lines.append(f'[target.{target}]\nacl = "some"')
            for number, name in luns.items():
                protected = chance.choice(("true", "false", "false"))
                lines.append(f'lun.{number} = {{ lun = "{name}", read-only = {protected} }}')
        return "\n".join(lines)

    def event(self, event: type[control.VolumeCreated] | type[control.VolumeResized], info: control.VolumeInfo) -> None:
        self.sequence += 1
        if self.house.service.is_attached:
            self.house.service.on_event(event(self.sequence, info))

    def step(self) -> None:
        """One thing happens, and as much of what follows as there is time for."""
        chance, house, service = self.chance, self.house, self.house.service
        kind = chance.choice(KINDS)
        if kind == "reload":
            house.target.configure(load(self.directory, self.text()))
        elif kind == "login":
            client = house.client(name=chance.choice(HOSTS), isid=bytes((128, 0, 0, 0, 0, chance.randrange(3))))
            client.initiator.login(PREFIX + chance.choice(TARGETS))
        elif kind == "leave" and self.living:
            chance.choice(self.living).lose()
        elif kind == "io":
            for client in self.living:
                if client.initiator.is_logged_in:
                    client.read(0, 8, lun=chance.randrange(4))
                    client.write(8, bytes(4096), lun=chance.randrange(4))
        elif kind == "volume":
            name = chance.choice(VOLUMES)
            if name in service.infos:
                info = service.infos.pop(name)
                self.sequence += 1
                if service.is_attached:
                    service.on_event(control.VolumeRemoved(self.sequence, info.name, info.uuid))
            else:
                service.infos[name] = info_of(name, uuid_of(f"{name}{self.sequence}"))
                self.event(control.VolumeCreated, service.infos[name])
        elif kind == "grow" and service.infos:
            info = service.infos[chance.choice(sorted(service.infos))]
            size = info.size_bytes + (1 << 20)
            service.infos[info.name] = info_of(info.name, info.uuid, size, info.generation + 1)
            self.event(control.VolumeResized, service.infos[info.name])
        elif kind == "server":
            if service.is_attached:
                service.lose()
            else:
                self.restart()
        elif kind == "hold":
            service.holds_opens = not service.holds_opens
        elif kind == "time":
            house.pass_time(chance.choice((0.1, 1.2)))
            house.target.tick(house.now)
        if chance.random() < 0.6:
            house.run()

    def restart(self) -> None:
        """The next volume server; the target has found it by its slowest look-out."""
        self.house.service.is_there = True
        self.house.pass_time(1.1)
        assert self.house.service.is_connected
        self.house.service.attach()

    def calm(self) -> None:
        """All that was under way ends."""
        house, service = self.house, self.house.service
        service.holds_opens = False
        for handle in service.handles:
            handle.let_go()
        if not service.is_attached:
            self.restart()
        for _ in range(4):
            house.run()
            house.pass_time(1.1)
            house.target.tick(house.now)
        house.run()

    def check(self) -> None:
        service = self.house.service
        held: list[str] = []
        for client in self.living:
            initiator = client.initiator
            assert initiator.is_logged_in, initiator.login_status
            assert initiator.name in self.allowed
            target = (initiator.parameters.target_name or "").removeprefix(PREFIX)
            luns = {number: name for number, name in self.wanted[target].items() if name in service.infos}
            assert sorted(client.luns()) == sorted(luns)
            for number, name in luns.items():
                client.attentions(number)
                capacity = client.do(client.initiator.command(b"\x25" + bytes(9), read=8, lun=number)).data
                block_bytes = int.from_bytes(capacity[4:], "big")
                blocks = int.from_bytes(capacity[:4], "big") + 1
                assert blocks * block_bytes == service.infos[name].size_bytes
                read = client.initiator.command(bytes.fromhex("28000000000000000100"), read=block_bytes, lun=number)
                assert client.do(read).status == scsi.GOOD
            held += luns.values()
        assert sorted(handle.info.name for handle in service.handles) == sorted(held)


@pytest.mark.parametrize("seed", [2, 7, 13, 19, 21, 41, 46, 53, 100, 101])
def test_storm(tmp_path: Path, seed: int) -> None:
    storm = Storm(tmp_path, seed)
    for _ in kept(storm.house):
        for number in range(STEPS):
            storm.step()
            if number % 30 == 29:
                storm.calm()
                storm.check()
