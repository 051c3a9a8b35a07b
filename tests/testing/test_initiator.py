"""The initiator does what a correct one does, and catches a target that doesn't: against a toy target, in memory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from iscsi_ovs import login, pdu
from iscsi_ovs.testing.initiator import Initiator, Received, ViolationError, encode
from iscsi_ovs.testing.socket_initiator import LoginRefusedError, SocketInitiator

TARGET = "iqn.2016-01.com.openvstorage:demo"
READ, WRITE = bytes([0x28]) + bytes(9), bytes([0x2A]) + bytes(9)


class ToyTarget:
    """Parses what an initiator sends, logs it in, and then does what a test tells it to."""

    def __init__(self, offer: login.Offer | None = None, limits: login.TextLimits | None = None) -> None:
        self.login = login.Login(1, offer, limits)
        self.text: login.TextExchange | None = None
        self.parameters: login.Parameters | None = None
        self.received: list[Received] = []
        self.stat_sn, self.exp_cmd_sn, self.window = 100, 0, 8
        self.on_command: Callable[[pdu.Pdu, bytes], None] | None = None
        self.out = bytearray()
        self._in = bytearray()

    def feed(self, data: bytes) -> bytes:
        self._in += data
        while len(self._in) >= 48:
            header = pdu.decode(self._in)
            ahs, length = header.total_ahs_length * 4, header.data_segment_length
            end = 48 + ahs + length
            if len(self._in) < end + pdu.pad_bytes(length):
                break
            received = Received(header, bytes(self._in[48 + ahs : end]), bytes(self._in[48 : 48 + ahs]))
            del self._in[: end + pdu.pad_bytes(length)]
            self.received.append(received)
            self._dispatch(header, received.data)
        out = bytes(self.out)
        self.out.clear()
        return out

    def send(self, header: pdu.Pdu, data: bytes = b"", *, status: bool = True) -> None:
        header.stat_sn = self.stat_sn
        self.stat_sn += status
        header.exp_cmd_sn, header.max_cmd_sn = self.exp_cmd_sn, (self.exp_cmd_sn + self.window - 1) & 0xFFFFFFFF
        self.out += encode(header, data)

    def _dispatch(self, header: pdu.Pdu, data: bytes) -> None:
        itt = header.initiator_task_tag
        if isinstance(header, pdu.LoginRequest):
            self.exp_cmd_sn = header.cmd_sn
            step = self.login.receive(header, data)
            self.parameters = step.finished
            response = pdu.LoginResponse(flags=step.flags, isid=header.isid, initiator_task_tag=itt)
            response.tsih = 77 if step.finished else 0
            self.send(response, step.text)
            if step.finished:
                self.text = login.TextExchange(step.finished, lambda: [(f"{TARGET}{n}", ["h:1,1"]) for n in range(300)])
            return
        if not header.opcode & pdu.IMMEDIATE and not isinstance(header, pdu.DataOut):
            assert header.cmd_sn == self.exp_cmd_sn
            self.exp_cmd_sn = (self.exp_cmd_sn + 1) & 0xFFFFFFFF
        if isinstance(header, pdu.TextRequest):
            assert self.text is not None
            answer = self.text.receive(header, data)
            self.send(
                pdu.TextResponse(
                    flags=answer.flags, initiator_task_tag=itt, target_transfer_tag=answer.target_transfer_tag
                ),
                answer.text,
            )
        elif isinstance(header, pdu.NopOut) and itt != pdu.RESERVED_TAG:
            self.send(pdu.NopIn(initiator_task_tag=itt), data)
        elif isinstance(header, pdu.LogoutRequest):
            self.send(pdu.LogoutResponse(initiator_task_tag=itt))
        elif isinstance(header, pdu.TaskManagementRequest):
            self.send(pdu.TaskManagementResponse(initiator_task_tag=itt, response=pdu.TASK_DOES_NOT_EXIST))
        elif self.on_command is not None:
            self.on_command(header, data)


def pump(initiator: Initiator, target: ToyTarget) -> None:
    while data := initiator.to_send():
        initiator.feed(target.feed(data))


def session(offer: login.Offer | None = None, **keys: Any) -> tuple[Initiator, ToyTarget]:
    initiator, target = Initiator(), ToyTarget(offer)
    initiator.login(TARGET, **keys)
    pump(initiator, target)
    assert initiator.is_logged_in
    target.received.clear()
    return initiator, target


@pytest.mark.parametrize("security", [True, False])
@pytest.mark.parametrize(
    "offer", [None, login.Offer(first_burst_length=4096), login.Offer(initial_r2t=True, immediate_data=False)]
)
@pytest.mark.parametrize("keys", [{}, {"FirstBurstLength": None, "ImmediateData": None, "MaxOutstandingR2T": "0x2"}])
def test_both_sides_agree(security: bool, offer: login.Offer | None, keys: dict[str, str | None]) -> None:
    """After a login the initiator's parameters are the target's, whoever brought a key up."""
    initiator, target = Initiator(), ToyTarget(offer)
    initiator.login(TARGET, security=security, **keys)
    pump(initiator, target)
    assert initiator.is_logged_in
    assert initiator.tsih == 77
    assert target.parameters is not None
    for field in login.Parameters.__slots__:
        assert getattr(initiator.parameters, field) == getattr(target.parameters, field), field


def test_a_login_in_pieces_both_ways() -> None:
    """More text than a PDU holds, from either side."""
    initiator, target = session(None, **{f"X-{number:061d}": "v" * 60 for number in range(100)})
    assert initiator.answers[f"X-{99:061d}"] == "NotUnderstood"
    assert target.parameters is not None


def test_discovery_and_targets_in_pieces() -> None:
    initiator, target = Initiator(), ToyTarget()
    initiator.login(None, MaxRecvDataSegmentLength="512")
    pump(initiator, target)
    itt = initiator.send_targets()
    pump(initiator, target)
    result = initiator.results[itt]
    assert result.is_complete
    assert [value for key, value in result.pairs if key == "TargetName"] == [f"{TARGET}{n}" for n in range(300)]


def test_a_long_text_request_goes_out_in_pieces() -> None:
    initiator, target = session(login.Offer(max_recv_data_segment_length=512))
    itt = initiator.text([(f"X-{number}", "v" * 50) for number in range(40)])
    pump(initiator, target)
    assert initiator.results[itt].pairs == [(f"X-{number}", "NotUnderstood") for number in range(40)]
    assert len(target.received) > 4


def test_bytes_may_come_in_any_pieces() -> None:
    initiator, target = Initiator(), ToyTarget()
    initiator.login(TARGET)
    while data := initiator.to_send():
        answer = target.feed(data)
        for offset in range(len(answer)):
            initiator.feed(answer[offset : offset + 1])
    assert initiator.is_logged_in


def test_nop_tmf_logout() -> None:
    initiator, target = session()
    ping, tmf, bye = (
        initiator.nop_out(b"hello"),
        initiator.tmf(pdu.ABORT_TASK, referenced_task_tag=1),
        initiator.logout(),
    )
    pump(initiator, target)
    assert bytes(initiator.results[ping].data) == b"hello"
    assert initiator.results[tmf].response == pdu.TASK_DOES_NOT_EXIST
    assert initiator.results[bye].response == pdu.LOGOUT_SUCCESS
    assert initiator.is_logged_out


def test_a_ping_is_answered() -> None:
    """Section 11.18: the answer has the target's tag and LUN, no task tag, and needs no answer."""
    initiator, target = session()
    target.send(pdu.NopIn(target_transfer_tag=9, lun=3), status=False)
    initiator.feed(target.feed(b""))
    pump(initiator, target)
    answer = target.received[0].header
    assert isinstance(answer, pdu.NopOut)
    assert (answer.target_transfer_tag, answer.initiator_task_tag, answer.lun) == (9, pdu.RESERVED_TAG, 3)
    assert answer.opcode & pdu.IMMEDIATE
    initiator.answer_pings = False
    target.send(pdu.NopIn(target_transfer_tag=10), status=False)
    initiator.feed(target.feed(b""))
    assert initiator.to_send() == b""


def test_a_read() -> None:
    initiator, target = session()

    def answer(header: pdu.Pdu, _: bytes) -> None:
        itt = header.initiator_task_tag
        assert header.flags & (pdu.READ | pdu.WRITE) == pdu.READ
        target.send(pdu.DataIn(initiator_task_tag=itt), b"a" * 512, status=False)
        target.send(
            pdu.DataIn(
                initiator_task_tag=itt, flags=pdu.FINAL | pdu.STATUS | pdu.UNDERFLOW, data_sn=1, buffer_offset=512,
                residual_count=3072,
            ),
            b"b" * 512,
        )  # fmt: skip

    target.on_command = answer
    itt = initiator.command(READ, read=4096, lun=2)
    pump(initiator, target)
    result = initiator.results[itt]
    assert (result.is_complete, result.status, bytes(result.data)) == (True, 0, b"a" * 512 + b"b" * 512)
    assert (result.underflow, result.residual_count) == (True, 3072)
    assert target.received[0].header.lun == 2 << 48


def test_sense() -> None:
    initiator, target = session()
    sense = bytes.fromhex("70000500000000 0a00000000 2400 00000000")
    target.on_command = lambda header, _: target.send(
        pdu.ScsiResponse(initiator_task_tag=header.initiator_task_tag, status=2), len(sense).to_bytes(2, "big") + sense
    )
    itt = initiator.command(READ, read=512)
    pump(initiator, target)
    result = initiator.results[itt]
    assert (result.status, result.sense_key, result.additional_sense) == (2, 5, (0x24, 0))
    assert result.sense == sense


class Disk:
    """Collects a write: what comes unasked, then by R2T bursts of ``burst`` bytes, ``outstanding`` at a time."""

    def __init__(self, target: ToyTarget, burst: int, outstanding: int = 1) -> None:
        self.target, self.burst, self.outstanding = target, burst, outstanding
        self.data = bytearray()
        self.itt, self.asked, self.r2ts, self.arrived = 0, 0, 0, 0
        self.unsolicited_pdus = 0
        target.on_command = self.receive

    def receive(self, header: pdu.Pdu, data: bytes) -> None:
        if isinstance(header, pdu.ScsiCommand):
            self.itt = header.initiator_task_tag
            self.data = bytearray(header.expected_data_transfer_length)
            self.take(0, data)
            self.immediate = len(data)
            if not header.flags & pdu.FINAL:
                return
            self.asked = len(data)
        else:
            if header.target_transfer_tag == pdu.RESERVED_TAG:
                self.unsolicited_pdus += 1
            self.take(header.buffer_offset, data)
            if not header.flags & pdu.FINAL:
                return
            self.asked = max(self.asked, self.arrived)
        if self.arrived == len(self.data):
            self.target.send(pdu.ScsiResponse(initiator_task_tag=self.itt))
            return
        while self.asked < len(self.data) and self.asked - self.arrived < self.burst * self.outstanding:
            length = min(self.burst, len(self.data) - self.asked)
            self.target.send(
                pdu.ReadyToTransfer(
                    initiator_task_tag=self.itt, target_transfer_tag=500 + self.r2ts, r2t_sn=self.r2ts,
                    buffer_offset=self.asked, desired_data_transfer_length=length,
                ),
                status=False,
            )  # fmt: skip
            self.asked += length
            self.r2ts += 1

    def take(self, offset: int, data: bytes) -> None:
        self.data[offset : offset + len(data)] = data
        self.arrived += len(data)


@pytest.mark.parametrize(
    ("keys", "size", "immediate", "unsolicited_pdus", "r2ts"),
    [
        ({}, 10_000, 10_000, 0, 0),
        ({"FirstBurstLength": "4096"}, 10_000, 4096, 0, 2),
        ({"ImmediateData": "No"}, 10_000, 0, 1, 0),
        ({"ImmediateData": "No", "FirstBurstLength": "4096"}, 10_000, 0, 1, 2),
        ({"InitialR2T": "Yes", "FirstBurstLength": "4096"}, 10_000, 4096, 0, 2),
        ({"InitialR2T": "Yes", "ImmediateData": "No"}, 10_000, 0, 0, 3),
        ({"InitialR2T": "Yes", "ImmediateData": "No", "MaxOutstandingR2T": "3"}, 100_000, 0, 0, 25),
    ],
)
def test_a_write_sends_what_was_negotiated(
    keys: dict[str, str], size: int, immediate: int, unsolicited_pdus: int, r2ts: int
) -> None:
    """Immediate, unsolicited and solicited data, each as far as the keys allow; every byte in its place."""
    initiator, target = session(**keys)
    disk = Disk(target, 4096, initiator.parameters.max_outstanding_r2t)
    payload = bytes(number % 251 for number in range(size))
    itt = initiator.command(WRITE, write=payload)
    pump(initiator, target)
    assert initiator.results[itt].is_complete
    assert bytes(disk.data) == payload
    assert (disk.immediate, disk.unsolicited_pdus, initiator.results[itt].r2ts) == (immediate, unsolicited_pdus, r2ts)


def test_data_out_is_cut_by_what_the_target_declared() -> None:
    initiator, target = session(login.Offer(max_recv_data_segment_length=1024), FirstBurstLength="4096")
    disk = Disk(target, 3000)
    itt = initiator.command(WRITE, write=bytes(9000))
    pump(initiator, target)
    assert initiator.results[itt].is_complete
    assert disk.immediate == 1024
    assert disk.unsolicited_pdus == 3
    assert all(len(received.data) <= 1024 for received in target.received)


def test_unsolicited_data_may_be_held_back() -> None:
    initiator, target = session()
    disk = Disk(target, 1 << 16)
    initiator.command(WRITE, write=bytes(5000), immediate_data=512, unsolicited_data=False)
    pump(initiator, target)
    assert (disk.immediate, disk.unsolicited_pdus, disk.r2ts) == (512, 0, 1)


def test_an_r2t_may_wait() -> None:
    initiator, target = session(InitialR2T="Yes", ImmediateData="No")
    initiator.answer_r2t = False
    Disk(target, 1 << 16)
    itt = initiator.command(WRITE, write=bytes(5000))
    pump(initiator, target)
    assert not initiator.results[itt].is_complete
    initiator.answer(initiator.received[-1].header)
    pump(initiator, target)
    assert initiator.results[itt].is_complete


def test_the_window_is_waited_for() -> None:
    """Commands beyond MaxCmdSN stay at home until it advances; immediate ones don't ask."""
    initiator, target = session()
    target.window = 2
    itts = [initiator.command(READ, read=0) for _ in range(20)]
    ping = initiator.nop_out()
    seen = []

    def answer(header: pdu.Pdu, _: bytes) -> None:
        seen.append(header.cmd_sn)
        target.send(pdu.ScsiResponse(initiator_task_tag=header.initiator_task_tag))

    target.on_command = answer
    pump(initiator, target)
    assert all(initiator.results[itt].is_complete for itt in [*itts, ping])
    assert seen == list(range(1, 21))


def test_command_numbers_go_round() -> None:
    initiator, target = Initiator(first_cmd_sn=0xFFFFFFFE), ToyTarget()
    initiator.login(TARGET)
    target.on_command = lambda header, _: target.send(pdu.ScsiResponse(initiator_task_tag=header.initiator_task_tag))
    pump(initiator, target)
    itts = [initiator.command(READ) for _ in range(12)]
    pump(initiator, target)
    assert all(initiator.results[itt].is_complete for itt in itts)
    assert initiator.cmd_sn == 10


def test_a_long_cdb_goes_in_an_additional_header() -> None:
    initiator, target = session()
    initiator.command(bytes(range(32)))
    pump(initiator, target)
    received = target.received[0]
    assert received.header.cdb == bytes(range(16))
    assert received.ahs == b"\x00\x11\x01\x00" + bytes(range(16, 32))


def test_raw_sends_anything() -> None:
    initiator = Initiator()
    initiator.raw(b"\xff" * 48, b"abc", pad=False)
    initiator.raw(pdu.NopOut(data_segment_length=9), b"abcde")
    assert initiator.to_send() == b"\xff" * 48 + b"abc" + pdu.NopOut(data_segment_length=9).pack() + b"abcde\0\0\0"


def test_data_out_of_one_s_own_making() -> None:
    initiator = Initiator()
    initiator.data_out(7, b"xyz", offset=512, transfer_tag=3, data_sn=4, final=False)
    header = pdu.decode(initiator.to_send())
    assert (header.initiator_task_tag, header.buffer_offset, header.data_sn, header.flags) == (7, 512, 4, 0)


def test_a_reject_completes_its_request() -> None:
    initiator, target = session()
    target.on_command = lambda header, _: target.send(
        pdu.Reject(reason=pdu.REJECT_INVALID_PDU_FIELD), header.pack()
    )  # fmt: skip
    itt = initiator.command(READ, read=512)
    pump(initiator, target)
    assert initiator.results[itt].reject_reason == pdu.REJECT_INVALID_PDU_FIELD


def bad(*pdus: tuple[pdu.Pdu, bytes, bool]) -> Callable[[ToyTarget, int], None]:
    def send(target: ToyTarget, itt: int) -> None:
        for header, data, status in pdus:
            if header.initiator_task_tag == 0:
                header.initiator_task_tag = itt
            target.send(header, data, status=status)

    return send


def r2t(**fields: Any) -> tuple[pdu.Pdu, bytes, bool]:
    return pdu.ReadyToTransfer(**{"desired_data_transfer_length": 512, "target_transfer_tag": 1, **fields}), b"", False


VIOLATIONS = {
    "an answer to nothing": ("no request", bad((pdu.ScsiResponse(initiator_task_tag=999), b"", True))),
    "two answers": ("no request", bad((pdu.ScsiResponse(), b"", True), (pdu.ScsiResponse(), b"", True))),
    "a StatSN twice": (
        "StatSN 102, expected 103",
        bad((pdu.ScsiResponse(), b"", False), (pdu.NopIn(initiator_task_tag=1), b"", True)),
    ),
    "data out of order": ("out of order", bad((pdu.DataIn(buffer_offset=512), b"x" * 512, False))),
    "DataSN that jumps": ("DataSN 1", bad((pdu.DataIn(data_sn=1), b"x" * 512, False))),
    "more data than asked for": ("more data-in", bad((pdu.DataIn(), b"x" * 8192, False))),
    "a segment beyond the declared length": ("beyond what we declared", bad((pdu.DataIn(), b"x" * 270_000, False))),
    "status without F": ("without F", bad((pdu.DataIn(flags=pdu.STATUS), b"x" * 512, True))),
    "both residuals": ("together", bad((pdu.ScsiResponse(flags=pdu.FINAL | pdu.OVERFLOW | pdu.UNDERFLOW), b"", True))),
    "a sense length that lies": ("sense length", bad((pdu.ScsiResponse(status=2), b"\x00\xffabc", True))),
    "an R2T for nothing": ("R2T for 0", bad(r2t(desired_data_transfer_length=0))),
    "an R2T beyond the data": ("beyond our data", bad(r2t(buffer_offset=1 << 20))),
    "an R2T beyond MaxBurstLength": ("R2T for 16777216", bad(r2t(desired_data_transfer_length=1 << 24))),
    "an R2T without a tag": ("without a target", bad(r2t(target_transfer_tag=pdu.RESERVED_TAG))),
    "an R2TSN that jumps": ("R2TSN 1", bad(r2t(r2t_sn=1))),
    "text with F and a tag": ("transfer tag", bad((pdu.TextResponse(target_transfer_tag=5), b"", True))),
    "text with F and C": ("F and C", bad((pdu.TextResponse(flags=0xC0), b"", True))),
    "a Reject of nothing": ("without the rejected", bad((pdu.Reject(), b"", True))),
}


@pytest.mark.parametrize("name", VIOLATIONS)
def test_what_a_target_must_not_do_is_caught(name: str) -> None:
    initiator, target = session()
    itt = initiator.command(WRITE, write=bytes(4096), unsolicited_data=False, immediate_data=0)
    initiator.results[itt].read_bytes = 4096
    initiator.to_send()
    words, send = VIOLATIONS[name]
    send(target, itt)
    with pytest.raises(ViolationError, match=words):
        initiator.feed(bytes(target.out))


def test_too_many_r2ts_are_caught() -> None:
    initiator, target = session(MaxOutstandingR2T="1", InitialR2T="Yes", ImmediateData="No")
    initiator.answer_r2t = False
    Disk(target, 512, outstanding=2)
    initiator.command(WRITE, write=bytes(4096))
    with pytest.raises(ViolationError):
        pump(initiator, target)


def test_an_unknown_opcode_is_caught() -> None:
    with pytest.raises(ViolationError, match="opcode"):
        Initiator().feed(b"\x3e" + bytes(47))


def test_a_request_from_the_target_is_caught() -> None:
    with pytest.raises(ViolationError, match="does not send NopOut"):
        Initiator().feed(encode(pdu.NopOut()))


@pytest.mark.parametrize(
    "response",
    [
        {"flags": 0x81, "isid": bytes(6)},
        {"flags": 0x81, "initiator_task_tag": 99},
        {"flags": 0x87},
        {"flags": 0x83, "tsih": 1},
        {"flags": 0xC1},
    ],
)
def test_a_wrong_login_response_is_caught(response: dict[str, Any]) -> None:
    initiator = Initiator()
    itt = initiator.login(TARGET)
    with pytest.raises(ViolationError):
        initiator.feed(pdu.LoginResponse(**{"isid": initiator.isid, "initiator_task_tag": itt, **response}).pack())


def test_a_target_that_never_lets_us_in_is_caught() -> None:
    initiator = Initiator()
    itt = initiator.login(TARGET)
    answers = [
        pdu.LoginResponse(isid=initiator.isid, initiator_task_tag=itt, stat_sn=turn).pack() for turn in range(20)
    ]
    with pytest.raises(ViolationError, match="never lets us"):
        initiator.feed(b"".join(answers))


@pytest.fixture
def listener() -> Iterator[tuple[int, Callable[[ToyTarget], None]]]:
    """A port on which one connection is served by a ToyTarget, on a thread."""
    server = socket.create_server(("127.0.0.1", 0))
    threads: list[threading.Thread] = []

    def serve(target: ToyTarget) -> None:
        def run() -> None:
            connection, _ = server.accept()
            with connection:
                while data := connection.recv(1 << 16):
                    connection.sendall(target.feed(data))

        threads.append(threading.Thread(target=run, daemon=True))
        threads[-1].start()

    yield server.getsockname()[1], serve
    for thread in threads:
        thread.join(5)
    server.close()


def test_over_tcp(listener: tuple[int, Callable[[ToyTarget], None]]) -> None:
    port, serve = listener
    target = ToyTarget()
    Disk(target, 4096)
    serve(target)
    with SocketInitiator("127.0.0.1", port) as initiator:
        initiator.login(TARGET)
        assert initiator.command(WRITE, write=bytes(300_000)).status == 0
        assert initiator.nop_out(b"ping").data == b"ping"
        assert initiator.tmf(pdu.ABORT_TASK).response == pdu.TASK_DOES_NOT_EXIST
        assert initiator.send_targets("") == {}
        assert initiator.logout().response == 0


def test_targets_over_tcp(listener: tuple[int, Callable[[ToyTarget], None]]) -> None:
    port, serve = listener
    serve(ToyTarget())
    with SocketInitiator("127.0.0.1", port) as initiator:
        initiator.login(None)
        assert initiator.send_targets() == {f"{TARGET}{n}": ["h:1,1"] for n in range(300)}


def test_a_refused_login_over_tcp(listener: tuple[int, Callable[[ToyTarget], None]]) -> None:
    port, serve = listener
    target = ToyTarget()
    target.feed = lambda data: pdu.LoginResponse(status_class=2, status_detail=3).pack()  # type: ignore[method-assign]
    serve(target)
    with SocketInitiator("127.0.0.1", port) as initiator, pytest.raises(LoginRefusedError) as caught:
        initiator.login(TARGET)
    assert caught.value.status == (2, 3)


def test_silence_over_tcp_ends_in_time(listener: tuple[int, Callable[[ToyTarget], None]]) -> None:
    port, serve = listener
    target = ToyTarget()
    serve(target)
    with SocketInitiator("127.0.0.1", port, timeout_s=0.2) as initiator:
        initiator.login(TARGET)
        with pytest.raises(TimeoutError):
            initiator.command(READ, read=512)
