"""Decisions handed to listeners: each hears of its own customers, and one that does not keep up is sent away."""

from tallygate.connectors.gateway.feed import QUEUE_MAX, DecisionFeed, Listener
from tallygate.schemas.records import Chunk, Record
from tallygate.schemas.topics import DECISIONS, HEADER_RECORD_ID


def record(customer: str, number: int = 0) -> Record:
    headers = ((HEADER_RECORD_ID, b"0/%d/0" % number),)
    return Record(DECISIONS, 0, number, 0, customer.encode(), b"{}", headers)


def feed_of(*listeners: Listener) -> DecisionFeed:
    feed = DecisionFeed("127.0.0.1:9", {})
    for listener in listeners:
        for name in (None,) if listener.customers is None else listener.customers:
            feed._by_customer.setdefault(name, set()).add(listener)
    return feed


async def heard(listener: Listener) -> list[str]:
    found = []
    while (item := await listener.next(0.01)) is not None:
        found.append(f"{(item[1].key or b'').decode()} {item[0]}")
    return found


async def test_each_hears_of_its_own_customers() -> None:
    acme, both, everyone = Listener(frozenset({"acme"})), Listener(frozenset({"acme", "globex"})), Listener(None)
    feed = feed_of(acme, both, everyone)
    records = [record("acme", 1), record("globex", 2), record("initech", 3)]
    feed._deliver([Chunk(DECISIONS, 0, records, 6, 1)])
    assert await heard(acme) == ["acme 0/1/0"]
    assert await heard(both) == ["acme 0/1/0", "globex 0/2/0"]
    assert await heard(everyone) == ["acme 0/1/0", "globex 0/2/0", "initech 0/3/0"]
    feed.leave(both)
    feed.leave(acme)
    assert set(feed._by_customer) == {None}


async def test_who_does_not_keep_up_is_sent_away() -> None:
    listener, quick = Listener(frozenset({"acme"})), Listener(None)
    feed = feed_of(listener, quick)
    for number in range(QUEUE_MAX + 1):
        feed._hand_out(record("acme", number))
        assert await quick.next(1) is not None
    assert listener.over
    assert not quick.over
    feed._hand_out(record("acme"))  # nothing more for the one, and no error
    assert len(await heard(listener)) == QUEUE_MAX


async def test_all_are_sent_away_when_it_closes() -> None:
    listener = Listener(None)
    feed_of(listener).close()
    assert listener.over
    assert await listener.next(1) is None
