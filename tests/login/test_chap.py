"""CHAP in a login, step by step: what is right, and everything that can be wrong with each step."""

from __future__ import annotations

import base64
import hashlib
import itertools
import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iscsi_ovs import errors, pdu
from iscsi_ovs.login import chap, text
from iscsi_ovs.login.policy import ALGORITHMS, CHAP, NONE, OPEN, Policy
from tests.login.chap_tools import (
    ALL_KEYS,
    AUTHENTICATION_FAILURE,
    HASHES,
    INITIATOR_ERROR,
    MISSING_PARAMETER,
    ONE_WAY,
    OUR_SECRET,
    SECRET,
    VALUES,
    begin,
    challenged,
    proof,
    right,
)
from tests.login.tools import (
    DISCOVERY,
    IDENTITY,
    INITIATOR,
    OPERATIONAL,
    OPERATIONAL_TO_FULL_FEATURE,
    SECURITY_TO_OPERATIONAL,
    TARGET,
    answers,
    refused,
    send,
)

# What is right


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("who", [IDENTITY, DISCOVERY], ids=["normal", "discovery"])
def test_one_way(algorithm: int, who: list[tuple[str, str]]) -> None:
    """Each algorithm, for normal and discovery sessions: in the end the login knows by which account."""
    side, said = challenged(offer=str(algorithm), who=who)
    assert said["CHAP_A"] == str(algorithm)
    step = send(side, SECURITY_TO_OPERATIONAL, proof(said))
    assert (step.flags, step.text) == (SECURITY_TO_OPERATIONAL, b"")
    finished = send(side, OPERATIONAL_TO_FULL_FEATURE).finished
    assert finished is not None
    assert (finished.auth_method, finished.account) == ("CHAP", "alice")


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_mutual(algorithm: int) -> None:
    """Our proof comes with the answer to the initiator's, by the same algorithm, over its identifier and challenge."""
    side, said = challenged(offer=str(algorithm))
    challenge = secrets.token_bytes(24)
    asked = [("CHAP_I", "200"), ("CHAP_C", "0x" + challenge.hex())]
    step = send(side, SECURITY_TO_OPERATIONAL, [*proof(said), *asked])
    assert step.flags == SECURITY_TO_OPERATIONAL
    back = answers(step)
    assert back["CHAP_N"] == "disks"
    assert bytes.fromhex(back["CHAP_R"][2:]) == HASHES[algorithm](b"\xc8" + OUR_SECRET + challenge).digest()


@pytest.mark.parametrize(
    ("algorithm", "expected"),
    [
        (5, "900150983cd24fb0d6963f7d28e17f72"),  # RFC 1321, A.5
        (6, "a9993e364706816aba3e25717850c26c9cd0d89d"),  # FIPS 180-4, SHA-1 example
        (7, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),  # FIPS 180-4, SHA-256 example
        (8, "3a985da74fe225b2045c172d6bd390bd855f086e3e9d525b46bfe24511431532"),  # FIPS 202, SHA3-256 example
    ],
)
def test_known_answers(algorithm: int, expected: str) -> None:
    """The standards' own "abc": identifier a, secret b, challenge c."""
    assert chap.response(algorithm, ord("a"), b"b", b"c").hex() == expected
    assert chap.ALGORITHMS[algorithm].digest_bytes == len(expected) // 2


def test_our_order_decides_between_algorithms() -> None:
    """… and the initiator's list is a list: it is neither compared as a string nor taken in its order."""
    for offer, chosen in (("5,6,7,8", "8"), ("5,7,6", "7"), ("6,5", "6"), ("5", "5"), ("0x8,5", "8"), ("99,5", "5")):
        assert challenged(offer=offer)[1]["CHAP_A"] == chosen, offer
    weak_first = Policy((CHAP,), (5, 8), {"alice": SECRET})
    assert challenged(weak_first, "8,5")[1]["CHAP_A"] == "5"


def test_a_list_of_a_hundred_algorithms() -> None:
    assert challenged(offer=",".join(map(str, range(100, 8, -1))) + ",7")[1]["CHAP_A"] == "7"


def test_a_minimum_of_strength() -> None:
    """What the policy does not name is not negotiated, however much the initiator wants it."""
    strong = Policy((CHAP,), (8, 7), {"alice": SECRET})
    assert challenged(strong, "5,6,7")[1]["CHAP_A"] == "7"
    side = begin(strong)
    send(side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])
    assert "no algorithm" in refused(AUTHENTICATION_FAILURE, side, 0, [("CHAP_A", "5,6")])


def test_a_host_without_md5(monkeypatch: pytest.MonkeyPatch) -> None:
    """In FIPS mode there is none: it is not chosen, and the others are."""
    monkeypatch.setattr(chap, "AVAILABLE", frozenset({6, 7, 8}))
    weak_first = Policy((CHAP,), (5, 6), {"alice": SECRET})
    assert challenged(weak_first, "5,6")[1]["CHAP_A"] == "6"
    side = begin()
    send(side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])
    refused(AUTHENTICATION_FAILURE, side, 0, [("CHAP_A", "5")])


@pytest.mark.parametrize("form", ["0x", "0X", "0b", "0B"])
@pytest.mark.parametrize("upper", [False, True])
def test_responses_in_hexadecimal_and_base64(form: str, upper: bool) -> None:
    side, said = challenged()
    value = right(said)
    digits = value.hex() if form[1] in "xX" else base64.b64encode(value).decode()
    if upper and form[1] in "xX":
        digits = digits.upper()
    step = send(side, SECURITY_TO_OPERATIONAL, [("CHAP_N", "alice"), ("CHAP_R", form + digits)])
    assert step.flags == SECURITY_TO_OPERATIONAL


@pytest.mark.parametrize("length", [1, 2, 15, 16, 17, 255, 256, 1023, 1024])
@pytest.mark.parametrize("form", ["0x", "0b"])
def test_challenges_of_an_initiator(length: int, form: str) -> None:
    """1 to 1024 bytes, in either form; and an identifier in decimal or hexadecimal."""
    side, said = challenged()
    challenge = secrets.token_bytes(length)
    digits = challenge.hex() if form == "0x" else base64.b64encode(challenge).decode()
    step = send(side, 0, [*proof(said), ("CHAP_I", "0xff"), ("CHAP_C", form + digits)])
    expected = hashlib.sha3_256(b"\xff" + OUR_SECRET + challenge).hexdigest()
    assert answers(step) == {"CHAP_N": "disks", "CHAP_R": "0x" + expected}


@pytest.mark.parametrize("name", ["0xb0b", "0b0b", "0", "a" * 255, "user@example.com", "ünal", "12 34"])
def test_a_name_is_never_decoded(name: str) -> None:
    """Whatever a name looks like, it is text."""
    side, said = challenged(Policy((CHAP,), accounts={name: SECRET}))
    assert send(side, SECURITY_TO_OPERATIONAL, proof(said, name)).flags == SECURITY_TO_OPERATIONAL


def test_transit_may_come_later() -> None:
    """An initiator that asks for the next stage in a request of its own; and one that skips the operational stage."""
    side, said = challenged()
    assert send(side, 0, proof(said)).flags == 0
    assert send(side, SECURITY_TO_OPERATIONAL).flags == SECURITY_TO_OPERATIONAL
    side, said = challenged()
    step = send(side, pdu.TRANSIT | 3, proof(said))
    assert step.finished is not None
    assert step.finished.account == "alice"


def test_a_login_in_the_smallest_pieces() -> None:
    """Each text in two pieces, cut at every byte (C bit)."""
    side, said = challenged()
    whole = text.join(proof(said))
    for cut in range(1, len(whole)):
        side, said = challenged()
        whole = text.join(proof(said))
        assert send(side, pdu.CONTINUE, whole[:cut]).flags == 0
        assert send(side, SECURITY_TO_OPERATIONAL, whole[cut:]).flags == SECURITY_TO_OPERATIONAL


# Challenges


def test_no_challenge_comes_twice() -> None:
    """Over many logins, which stands for many restarts: nothing in the core remembers or seeds anything."""
    seen = [challenged()[1] for _ in range(512)]
    assert len({said["CHAP_C"] for said in seen}) == len(seen)
    assert len({said["CHAP_I"] for said in seen}) > 64
    ones = sum(int(said["CHAP_C"], 16).bit_count() for said in seen)
    bits = len(seen) * 256
    assert abs(ones - bits / 2) < bits * 0.01, "as many ones as zeroes, within five deviations"


def test_challenges_are_what_the_owner_drew() -> None:
    """The core draws nothing itself: the same bytes handed in are the same challenge, as long as a response."""
    drawn: list[int] = []

    def draw(count: int) -> bytes:
        drawn.append(count)
        return bytes(range(7, 7 + count))

    side = begin(random_bytes=draw)
    send(side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])
    assert drawn == [], "nothing is drawn before it is needed"
    said = answers(send(side, 0, [("CHAP_A", "6")]))
    assert drawn == [1, 20]
    assert said == {"CHAP_A": "6", "CHAP_I": "7", "CHAP_C": "0x" + bytes(range(7, 27)).hex()}


# What is refused


def test_a_wrong_secret_and_no_such_account_look_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same status, and the same hash computed over as much; only the log knows which it was."""
    work: list[tuple[int, int]] = []
    compute = chap.response

    def counted(algorithm: int, identifier: int, secret: bytes, challenge: bytes) -> bytes:
        work.append((algorithm, len(challenge)))
        return compute(algorithm, identifier, secret, challenge)

    monkeypatch.setattr(chap, "response", counted)
    told = []
    for name, secret in (("alice", b"another secret, as long.."), ("nobody", SECRET)):
        side, said = challenged()
        told.append(refused(AUTHENTICATION_FAILURE, side, SECURITY_TO_OPERATIONAL, proof(said, name, secret)))
    assert work[0] == work[1]
    assert len(work) == 2
    assert told[0].replace("wrong secret", "no such account").replace("alice", "nobody") == told[1]


def test_nobodys_secret_opens_nothing() -> None:
    """The stand-in that an unknown account is compared with is no password."""
    side, said = challenged()
    refused(AUTHENTICATION_FAILURE, side, 0, proof(said, "nobody", chap._NOBODYS_SECRET))


def test_the_log_names_who_and_why_and_no_secret() -> None:
    side, said = challenged()
    values = [*proof(said, secret=b"not the secret, but long"), ("CHAP_I", "1"), ("CHAP_C", "0x" + "ab" * 16)]
    message = refused(AUTHENTICATION_FAILURE, side, 0, values)
    assert INITIATOR in message
    assert "'alice'" in message
    assert "wrong secret" in message
    for hidden in (SECRET.decode(), OUR_SECRET.decode(), said["CHAP_C"][2:], values[1][1][2:], "ab" * 16):
        assert hidden not in message


def test_a_reflected_challenge() -> None:
    """Section 9.2.1: whoever sends our own challenge back would have us answer it, in either form."""
    for form in (lambda value: "0x" + value.hex(), lambda value: "0b" + base64.b64encode(value).decode()):
        side, said = challenged()
        ours = form(bytes.fromhex(said["CHAP_C"][2:]))
        message = refused(AUTHENTICATION_FAILURE, side, 0, [*proof(said), ("CHAP_I", "9"), ("CHAP_C", ours)])
        assert "challenge came back" in message


def test_one_secret_for_both_directions() -> None:
    policy = Policy((CHAP,), accounts={"alice": SECRET}, mutual_name="disks", mutual_secret=SECRET)
    side, said = challenged(policy)
    asked = [("CHAP_I", "9"), ("CHAP_C", "0x" + "ab" * 16)]
    assert "same" in refused(AUTHENTICATION_FAILURE, side, 0, [*proof(said), *asked])


def test_no_proof_of_ours_before_the_initiators() -> None:
    """With a wrong response, nothing is computed with our own secret; without one of ours, 0201 as the table says."""
    asked = [("CHAP_I", "9"), ("CHAP_C", "0x" + "ab" * 16)]
    side, said = challenged()
    refused(AUTHENTICATION_FAILURE, side, 0, [*proof(said, secret=b"wrong, and long enough"), *asked])
    side, said = challenged(ONE_WAY)
    assert "no name and secret" in refused(AUTHENTICATION_FAILURE, side, 0, [*proof(said), *asked])


@pytest.mark.parametrize(
    ("value", "status"),
    [
        ("", INITIATOR_ERROR),
        (",", INITIATOR_ERROR),
        ("8,", INITIATOR_ERROR),
        ("MD5", INITIATOR_ERROR),
        ("-8", INITIATOR_ERROR),
        ("8;7", INITIATOR_ERROR),
        (" 8", INITIATOR_ERROR),
        ("56", AUTHENTICATION_FAILURE),
        ("0", AUTHENTICATION_FAILURE),
        (",".join(map(str, range(9, 109))), AUTHENTICATION_FAILURE),
    ],
)
def test_algorithm_lists_that_are_refused(value: str, status: tuple[int, int]) -> None:
    side = begin()
    send(side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])
    refused(status, side, 0, [("CHAP_A", value)])


BAD_BINARIES = {
    "nothing": "",
    "no prefix": "ab" * 32,
    "decimal": "12345678",
    "a prefix alone": "0x",
    "a base64 prefix alone": "0b",
    "half a byte": "0x" + "a" * 63,
    "no digits": "0x" + "zz" * 32,
    "blanks": "0x" + "ab " * 21 + "ab",
    "an underscore": "0x" + "a_b" * 20,
    "no padding": "0bQUI",
    "padding in the middle": "0bQQ==QUJD",
    "too much padding": "0bQUJD=",
    "padding first": "0b====",
    "bits to spare": "0bQUJ=",
    "not base64": "0b" + "*" * 44,
    "not ASCII": "0b" + "é" * 8,
    "URL-safe base64": "0b_-_-",
    "1025 bytes": "0x" + "00" * 1025,
    "1025 bytes in base64": "0b" + base64.b64encode(bytes(1025)).decode(),
    "2 KiB": "0x" + "00" * 2048,
}


@pytest.mark.parametrize("value", BAD_BINARIES.values(), ids=BAD_BINARIES.keys())
@pytest.mark.parametrize("key", ["CHAP_R", "CHAP_C"])
def test_values_that_are_no_binary_value(key: str, value: str) -> None:
    """Section 9.2: values "not according to the step definition" are an initiator error."""
    side, said = challenged()
    values = {**dict(proof(said)), "CHAP_I": "1", "CHAP_C": "0x" + "ab" * 16, key: value}
    assert key in refused(INITIATOR_ERROR, side, 0, list(values.items()))


def test_a_base64_value_beyond_any_text() -> None:
    """libiscsi's Base64Oversize: 8 KiB and more in one value never reach CHAP."""
    side, _ = challenged()
    refused(INITIATOR_ERROR, side, 0, [("CHAP_N", "alice"), ("CHAP_R", "0b" + "A" * 8190)])


@pytest.mark.parametrize("change", ["short", "long", "of another algorithm", "one bit"])
def test_responses_of_the_right_form_that_are_wrong(change: str) -> None:
    """… are cryptographically incorrect: 0201, not an initiator error."""
    side, said = challenged()
    value = right(said)
    wrong = {
        "short": value[:-1],
        "long": value + b"\0",
        "of another algorithm": right({**said, "CHAP_A": "7"}),
        "one bit": bytes((value[0] ^ 1, *value[1:])),
    }[change]
    refused(AUTHENTICATION_FAILURE, side, 0, [("CHAP_N", "alice"), ("CHAP_R", "0x" + wrong.hex())])


@pytest.mark.parametrize("value", ["256", "-1", "", "0x100", "1.0", "0x", "one", "00"])
def test_identifiers_that_are_no_byte(value: str) -> None:
    side, said = challenged()
    refused(INITIATOR_ERROR, side, 0, [*proof(said), ("CHAP_I", value), ("CHAP_C", "0x" + "ab" * 16)])


@pytest.mark.parametrize("name", ["", "a" * 256, "a" * 300, "ü" * 128])
def test_names_of_the_wrong_length(name: str) -> None:
    side, said = challenged()
    refused(INITIATOR_ERROR, side, 0, proof(said, name))


# The order of steps

SUBSETS = [set(keys) for size in range(6) for keys in itertools.combinations(ALL_KEYS, size)]


def some(names: set[str]) -> list[tuple[str, str]]:
    return [(name, VALUES[name]) for name in ALL_KEYS if name in names]


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_every_set_of_keys_in_the_first_step(names: set[str]) -> None:
    """CHAP_A alone begins; a response before the challenge, or nothing at all, does not."""
    side = begin()
    send(side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])
    if names == {"CHAP_A"}:
        assert "CHAP_C" in answers(send(side, 0, some(names)))
    else:
        refused(INITIATOR_ERROR if names - {"CHAP_A"} else MISSING_PARAMETER, side, 0, some(names))


@pytest.mark.parametrize("names", SUBSETS, ids=lambda names: "+".join(sorted(names)) or "none")
def test_every_set_of_keys_in_the_second_step(names: set[str]) -> None:
    """Name and response, with identifier and challenge both or neither; CHAP_A is over."""
    side, said = challenged()
    values = [(name, dict(proof(said)).get(name, value)) for name, value in some(names)]
    if names in ({"CHAP_N", "CHAP_R"}, {"CHAP_N", "CHAP_R", "CHAP_I", "CHAP_C"}):
        assert send(side, SECURITY_TO_OPERATIONAL, values).flags == SECURITY_TO_OPERATIONAL
    else:
        refused(INITIATOR_ERROR if "CHAP_A" in names else MISSING_PARAMETER, side, 0, values)


@pytest.mark.parametrize("names", SUBSETS[1:], ids=lambda names: "+".join(sorted(names)))
def test_every_set_of_keys_after_the_last_step(names: set[str]) -> None:
    """Nothing more, not even the same again."""
    side, said = challenged()
    send(side, 0, proof(said))
    refused(INITIATOR_ERROR, side, 0, some(names))


@pytest.mark.parametrize("key", ALL_KEYS)
def test_chap_keys_where_there_is_no_chap(key: str) -> None:
    """Before AuthMethod, beside it, after AuthMethod=None, in the operational stage, and twice in one text."""
    pair = (key, VALUES[key])
    refused(INITIATOR_ERROR, begin(), 0, [*IDENTITY, pair])
    refused(INITIATOR_ERROR, begin(), 0, [*IDENTITY, ("AuthMethod", "CHAP"), pair])
    side = begin(Policy((NONE,)))
    send(side, 0, [*IDENTITY, ("AuthMethod", "None")])
    refused(INITIATOR_ERROR, side, 0, [pair])
    side = begin(OPEN)
    refused(INITIATOR_ERROR, side, OPERATIONAL, [*IDENTITY, pair])
    side, _ = challenged()
    refused(INITIATOR_ERROR, side, 0, [pair, pair])


def test_the_method_is_negotiated_once() -> None:
    for again in ("CHAP", "None"):
        side, _ = challenged()
        refused(INITIATOR_ERROR, side, 0, [("AuthMethod", again)])


# Any text at all


@given(st.text(max_size=40) | st.binary(max_size=40).map(lambda value: "0x" + value.hex()) | st.builds(
    lambda value, junk: "0b" + base64.b64encode(value).decode() + junk,
    st.binary(max_size=40), st.sampled_from(["", "=", "A", "==", " "]),
))  # fmt: skip
def test_binary_values_are_one_value_or_none(written: str) -> None:
    """Whatever decodes is one of the two forms of exactly its value; all else raises ValueError."""
    try:
        value = chap.decode(written)
    except ValueError:
        return
    assert 0 < len(value) <= chap.LONGEST_BINARY
    prefix, digits = written[:2].lower(), written[2:]
    assert prefix in ("0x", "0b")
    assert digits.lower() == value.hex() if prefix == "0x" else digits == base64.b64encode(value).decode()


@given(st.binary(min_size=1, max_size=1024))
def test_what_we_encode_we_decode(value: bytes) -> None:
    assert chap.decode(chap.encode(value)) == value
    assert chap.decode("0b" + base64.b64encode(value).decode()) == value


@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, SECURITY_TO_OPERATIONAL, OPERATIONAL_TO_FULL_FEATURE, pdu.TRANSIT | 3, pdu.CONTINUE]),
            st.lists(
                st.tuples(
                    st.sampled_from([*ALL_KEYS, "AuthMethod", "InitiatorName", "TargetName", "SessionType"]),
                    st.sampled_from([*VALUES.values(), "CHAP", "None", INITIATOR, TARGET, "Discovery", ""]) | st.text(),
                ),
                max_size=5,
                unique_by=lambda pair: pair[0],
            ),
        ),
        max_size=6,
    )
)
def test_no_conversation_gets_in_without_the_secret(requests: list[tuple[int, list[tuple[str, str]]]]) -> None:
    """Any keys in any order, any stage: a LoginError or an answer, and never the end of the login."""
    side = begin()
    try:
        send(side, 0, [*IDENTITY, ("AuthMethod", "CHAP")])
        for flags, pairs in requests:
            step = send(side, flags, pairs)
            assert step.finished is None
            assert not step.flags & pdu.TRANSIT
            assert "CHAP_R" not in answers(step)
    except errors.LoginError as error:
        refusal: errors.LoginError | None = error
    else:
        refusal = None
    assert refusal is None or (refusal.status_class == 2 and OUR_SECRET.decode() not in str(refusal))
