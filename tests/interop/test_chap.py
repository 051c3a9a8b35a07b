"""CHAP and header digests with real initiators: libiscsi's tools and QEMU's.

libiscsi 1.19, and QEMU on it, know MD5 alone, one-way and mutual, and header digests; the Linux initiator (tests/guest)
has the other algorithms and data digests.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.interop import initiators
from tests.interop.guarded import ANY, OUR_NAME, OUR_SECRET, SECRET, USER, WRONG_SECRET, Guarded, target_of
from tests.interop.initiators import InitiatorError

pytestmark = pytest.mark.interop

MUTUAL = f"?target_user={OUR_NAME}&target_password={OUR_SECRET}"


@pytest.fixture(scope="module")
def guarded(module_dir: Path) -> Iterator[Guarded]:
    with Guarded(module_dir) as made:
        yield made


@pytest.mark.parametrize("iqn", [ANY, target_of("MD5")])
def test_one_way(guarded: Guarded, iqn: str) -> None:
    """The right secret opens the disk; the log says by which account."""
    assert "Vendor:OVS" in initiators.run("iscsi-inq", guarded.url(iqn))
    assert f"as '{USER}'" in guarded.await_log(f"{iqn}: login of ")


def test_mutual(guarded: Guarded) -> None:
    """libiscsi verifies our proof: with another secret in its hands it turns away."""
    assert "Vendor:OVS" in initiators.run("iscsi-inq", guarded.url(ANY, options=MUTUAL))
    with pytest.raises(InitiatorError, match="Invalid CHAP_R response from the target"):
        initiators.run("iscsi-inq", guarded.url(ANY, options=MUTUAL.replace(OUR_SECRET, WRONG_SECRET)))


def test_discovery(guarded: Guarded) -> None:
    """Without a secret there is nothing to be seen; with it, all targets."""
    said = initiators.run("iscsi-ls", guarded.url(ANY).split("/iqn.")[0])
    assert f"Target:{ANY} " in said
    assert f"Target:{target_of('SHA-256')} " in said
    with pytest.raises(InitiatorError, match=r"Authentication failure\(513\)"):
        initiators.run("iscsi-ls", f"iscsi://{guarded.portal}")


@pytest.mark.parametrize(
    ("url", "cause"),
    [
        (lambda guarded: guarded.url(ANY, secret=WRONG_SECRET), f"as '{USER}': wrong secret"),
        (lambda guarded: guarded.url(ANY).replace(f"{USER}%", "mallory%"), "as 'mallory': no such account"),
        (lambda guarded: f"iscsi://{guarded.portal}/{ANY}/0", "must authenticate, and does not offer to"),
        (lambda guarded: guarded.url(target_of("SHA-256")), "no algorithm of ours in CHAP_A='5'"),
    ],
    ids=["wrong secret", "unknown account", "no authentication", "too weak an algorithm"],
)
def test_refused(guarded: Guarded, url, cause: str) -> None:  # type: ignore[no-untyped-def]
    """Status 0201, which libiscsi calls 513, and a line in the log that names who and why (and no secret: Guarded)."""
    with pytest.raises(InitiatorError, match=r"Authentication failure\(513\)"):
        initiators.run("iscsi-inq", url(guarded))
    line = guarded.await_log(cause)
    assert "login refused (0201)" in line
    assert "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-inq" in line


def test_header_digests(guarded: Guarded) -> None:
    """libiscsi's URL option."""
    assert "Vendor:OVS" in initiators.run("iscsi-inq", guarded.url(ANY, options="?header_digest=crc32c"))


@pytest.mark.parametrize("digest", ["none", "crc32c", "crc32c-none", "none-crc32c"])
def test_data_behind_chap(guarded: Guarded, digest: str) -> None:
    """QEMU writes and reads through CHAP, whatever it says of header digests; its secret is an option of its own."""
    drive = (
        f"driver=iscsi,transport=tcp,portal={guarded.portal},target={ANY},lun=0,"
        f"user={USER},password={SECRET},header-digest={digest},cache.direct=on"
    )
    pattern = len(digest)
    commands = [
        f"write -P {pattern} 512 1M",
        f"write -P {pattern} 3M 3584",
        f"read -P {pattern} 512 1M",
        f"read -P {pattern} 3M 3584",
        "flush",
    ]
    said = initiators.run("qemu-io", *[word for each in commands for word in ("-c", each)], "--image-opts", drive)
    assert "Pattern verification failed" not in said
    assert said.count("bytes at offset") == 4


def test_a_secret_in_the_url(guarded: Guarded) -> None:
    """… as QEMU takes it, too."""
    initiators.qemu_io(guarded.url(ANY), "write -P 7 0 4k", "read -P 7 0 4k")
