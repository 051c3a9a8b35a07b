"""Who may log in, and how they prove it: what an owner hands to one login (RFC 7143 sections 9.2, 12.1).

The owner of a connection gives a Policy for the pair of names that a login has stated; ``security`` obeys it. Where
accounts and secrets come from, and whether a secret is long enough, is the configuration's business. No secret is ever
part of a repr: policies end up in tracebacks and debug lines.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

CHAP = "CHAP"
NONE = "None"
METHODS = (CHAP, NONE)

# CHAP_A as registered with IANA, the strongest first.
SHA3_256 = 8
SHA_256 = 7
SHA_1 = 6
MD5 = 5
ALGORITHMS = (SHA3_256, SHA_256, SHA_1, MD5)


@dataclass(frozen=True, slots=True, repr=False)
class Policy:
    """``methods`` and ``algorithms`` are in our order of preference; what is not in them is refused.

    ``accounts`` are the names (CHAP_N) that may log in here, each with its secret. With a ``mutual_secret`` we prove
    ourselves, as ``mutual_name``, to an initiator that asks for it and has proved itself first.
    """

    methods: tuple[str, ...] = (NONE,)
    algorithms: tuple[int, ...] = ALGORITHMS
    accounts: Mapping[str, bytes] = field(default_factory=dict)
    mutual_name: str | None = None
    mutual_secret: bytes | None = None

    def __post_init__(self) -> None:
        assert self.methods, "a policy without a method lets nobody in: refuse by check_target instead"
        assert all(method in METHODS for method in self.methods), self.methods
        assert all(algorithm in ALGORITHMS for algorithm in self.algorithms), self.algorithms
        assert CHAP not in self.methods or self.algorithms, "CHAP without an algorithm"
        assert (self.mutual_name is None) == (self.mutual_secret is None), "a name and a secret, or neither"

    def __repr__(self) -> str:
        return (
            f"Policy(methods={self.methods!r}, algorithms={self.algorithms!r}, accounts={sorted(self.accounts)!r}, "
            f"mutual_name={self.mutual_name!r})"
        )


OPEN = Policy()  # whoever asks is let in, unauthenticated
