"""A story about meters: one of each aggregation over the same events, each with a feature that bills it."""

from typing import Any

from money import Money, instant_ms
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.catalog_file import read_catalog
from tallygate.schemas.events import UsageEvent
from tallygate.schemas.instants import HOUR_MS, to_datetime

AGGREGATIONS = ("sum", "count", "min", "max", "latest", "unique")
OF = read_catalog(
    {
        "meters": {
            a: {
                "event_type": "x",
                "aggregation": a,
                **({} if a == "count" else {"value": "who" if a == "unique" else "n"}),
                "dimensions": ["team"],
            }
            for a in AGGREGATIONS
        }
        | {
            "good": {"event_type": "y", "value": "n", "where": {"status": ["ok", "partial"], "test": False}},
            "tries": {"event_type": "y", "aggregation": "count"},
        },
        "features": {
            a: {
                "pool": a,
                "meters": [a],
                "rates": [] if a in ("min", "latest") else [{"meter": a, "credits": 1}],
                "overage": "unlimited",
            }
            for a in (*AGGREGATIONS, "good", "tries")
        },
    },
    "meters",
).compile(1)


class Metered(Money):
    def __init__(self, text: str = "") -> None:
        super().__init__(text, OF)
        self.count = 0

    def send(self, type: str = "x", at: str | None = None, **data: Any) -> str:
        """Take an event now, with a time of its own; its id."""
        self.count += 1
        id = f"e{self.count}"
        time = None if at is None else to_datetime(instant_ms(at))
        event = UsageEvent(specversion="1.0", id=id, source="stories", type=type, subject="acme", time=time, data=data)
        self.transitions.append(self.partition.use(event))
        return id

    def hours(self, meter: str) -> list[str]:
        """`hour[team] quantity of events` by hour since T0."""
        rows = self.partition.state.account("acme").usage.values()
        return [
            f"{row.hour // HOUR_MS % 24}[{row.dimensions.get('team', '')}] {from_nanos(row.quantity_nanos)} of "
            f"{row.events}{f' late {row.late_events}' if row.late_events else ''}"
            for row in sorted(rows, key=lambda row: (row.hour, row.dimensions.get("team", "")))
            if row.meter == meter
        ]

    def bill(self, meter: str) -> str:
        """What the feature of this meter has cost."""
        return self.pool(meter)[0] if meter in self.partition.state.account("acme").pools else "0"
