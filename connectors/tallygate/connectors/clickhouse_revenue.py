"""Views for accountants, from postings alone: revenue earned, deferred revenue, breakage, overage.

Each is by `day` (UTC, of stream time), `customer`, `pool`, `feature`, `grant`, `category` and `price` (paid a credit),
and adds up over any of them. `credits` are units of the pool; `money` is credits × price, exact, in whatever the price
was given in. What was given away has a price of 0, so trial and promotional credits carry no money.

| view | `credits` of a day |
|---|---|
| `revenue_earned` | that grants paid for work, less what was undone; `feature` is '' where they repaid overage |
| `deferred_revenue` | by how much what is not used yet, held or not, has changed: the liability is the sum so far |
| `breakage` | that ended unused; `why` is expired, forfeited or voided |
| `overage` | by how much what is owed has changed; `money` is what its repayment has earned |

Of each grant, what is issued is what is earned, broken and still deferred, to the last digit: they are the legs of the
same postings.

`overage` splits `credits` into `used` (no grant covered it, it is owed), less `repaid` (by a later grant), less
`forgiven` (the work was undone), less `dropped` (at a reset). `written_off` is what no grant covered and nobody owes.
What is owed has no price before a grant repays it.

What was earned in January, by feature and category of credits:

    SELECT feature, category, sum(credits), sum(money) FROM revenue_earned
    WHERE day >= '2026-01-01' AND day < '2026-02-01' GROUP BY ALL ORDER BY ALL

The liability to each customer at the end of January:

    SELECT customer, sum(credits), sum(money) FROM deferred_revenue
    WHERE day < '2026-02-01' GROUP BY customer HAVING sum(money) != 0

Breakage by month and reason:

    SELECT toStartOfMonth(day) AS month, why, sum(credits), sum(money) FROM breakage GROUP BY ALL ORDER BY ALL

Who owes how much now, and what of it was used for:

    SELECT customer, pool, sum(credits) AS owed, sumMap(map(feature, used)) AS used FROM overage
    GROUP BY ALL HAVING owed > 0
"""

from typing import Final

_BY = "toDate(at) AS day, customer, asset AS pool, feature, grant, category, price"
#: 256 bits: credits × price of any size, without rounding.
_SUMS = "sum(amount) AS credits, toDecimal256(credits, 9) * toDecimal256(price, 9) AS money"
_PAID = "account = 'overage' AND grant != ''"

REVENUE_VIEWS: Final = (
    f"CREATE OR REPLACE VIEW revenue_earned AS SELECT {_BY}, {_SUMS} FROM postings "
    "WHERE grant != '' AND (startsWith(account, 'consumed:') OR account = 'overage') GROUP BY ALL",
    f"CREATE OR REPLACE VIEW deferred_revenue AS SELECT {_BY}, {_SUMS} FROM postings "
    "WHERE startsWith(account, 'grant:') OR startsWith(account, 'hold:') GROUP BY ALL",
    f"CREATE OR REPLACE VIEW breakage AS SELECT {_BY}, substring(account, length('breakage:') + 1) AS why, {_SUMS} "
    "FROM postings WHERE grant != '' AND startsWith(account, 'breakage:') GROUP BY ALL",
    f"CREATE OR REPLACE VIEW overage AS SELECT {_BY}, -sumIf(amount, account = 'overage') AS credits, "
    "-sumIf(amount, account = 'overage' AND amount < 0) AS used, "
    f"sumIf(amount, {_PAID}) AS repaid, "
    "sumIf(amount, account = 'overage' AND amount > 0 AND feature != '') AS forgiven, "
    "sumIf(amount, account = 'overage' AND amount > 0 AND grant = '' AND feature = '') AS dropped, "
    "-sumIf(amount, account = 'write_off') AS written_off, "
    "toDecimal256(repaid, 9) * toDecimal256(price, 9) AS money "
    "FROM postings WHERE account IN ('overage', 'write_off') GROUP BY ALL",
)
