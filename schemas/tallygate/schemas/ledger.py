"""Double entry: postings are signed legs that sum to zero per asset within an entry.

Accounts of a customer, per pool (`asset`): `issued:<category>` → `grant:<id>` → `hold:<id>` → `consumed:<feature>`;
`breakage:<why>` for what expired, was forfeited or voided; `overage` for what is owed; `write_off`. A leg carries the
grant's category and price per credit, so that deferred revenue, revenue earned and breakage can be read off postings
alone.
"""

from typing import Final

import msgspec

OVERAGE: Final = "overage"
WRITE_OFF: Final = "write_off"


def issued(category: str) -> str:
    return f"issued:{category}"


def granted(grant: str) -> str:
    return f"grant:{grant}"


def held(hold: str) -> str:
    return f"hold:{hold}"


def consumed(feature: str) -> str:
    return f"consumed:{feature}"


def breakage(why: str) -> str:
    return f"breakage:{why}"


class Posting(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One leg: `amount_nanos` is added to `account`. `cause` indexes the entry's causes; -1: stream time alone.

    `at` is the instant (ms) at which it took effect; `grant`, `category` and `price_nanos` (paid per credit) are those
    of the grant whose credits move, empty and 0 for overage.
    """

    asset: str
    account: str
    amount_nanos: int
    at: int
    cause: int
    grant: str = ""
    category: str = ""
    price_nanos: int = 0
    feature: str = ""
