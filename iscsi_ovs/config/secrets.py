"""Secrets: where they come from, and what is wrong with them (RFC 7143 section 9.2.1).

No secret is part of an error, a log line or a repr.
"""

from __future__ import annotations

from pathlib import Path

from iscsi_ovs.config import sections
from iscsi_ovs.config.reading import Place, check_private, read_text
from iscsi_ovs.errors import ConfigurationError

# "… implementations SHOULD … CHAP … using secrets of at least 96 bits" (section 9.2.1)
LEAST_SECRET_BYTES = 12
SECRET_LIMIT_BYTES = 255


def secret_of(chap: sections.Chap, group: sections.AuthGroup, place: Place, warnings: list[str]) -> bytes:
    """An account's secret, from where the configuration says; what is doubtful of it is added to ``warnings``."""
    if (chap.secret is None) == (chap.secret_file is None):
        raise place.error("either 'secret' or 'secret-file' is expected")
    if chap.secret is not None:
        secret = chap.secret.encode()
    else:
        assert chap.secret_file is not None
        place = place / "secret-file"
        try:
            secret = _read(place.file.parent / chap.secret_file)
        except ConfigurationError as error:
            raise place.error(f"{error}") from None
    if not secret or len(secret) > SECRET_LIMIT_BYTES:
        raise place.error(f"a secret has 1 to {SECRET_LIMIT_BYTES} bytes")
    if len(secret) < LEAST_SECRET_BYTES:
        words = f"the secret of {chap.user!r} has less than {LEAST_SECRET_BYTES} bytes (RFC 7143 section 9.2.1)"
        if group.short_secrets == "refuse":
            raise place.error(f'{words}; short-secrets = "warn" lets it pass')
        warnings.append(f"{place}: {words}")
    return secret


def _read(path: Path) -> bytes:
    """One line of a file that nobody else may read."""
    text, mode = read_text(path)
    check_private(path, mode, "it is a secret")
    return text.removesuffix("\n").removesuffix("\r").encode()
