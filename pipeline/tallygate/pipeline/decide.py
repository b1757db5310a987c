"""`decide(state, inputs, catalog, rules) -> transition`: the one function through which state changes.

It takes a run of inputs of one partition in their order and returns everything that follows: journal records, replies,
dead letters. It changes nothing itself, reads no clock, and gives the same transition for the same arguments.
"""

from collections.abc import Sequence
from typing import assert_never

from msgspec.structs import replace

from tallygate.pipeline import batches, commands, grants, holds, hours, reservations, usage
from tallygate.pipeline.account import FOREVER, AccountDraft
from tallygate.pipeline.draft import Draft
from tallygate.pipeline.gathering import Gathering, Member
from tallygate.pipeline.memory import encode_memory
from tallygate.pipeline.replay import (
    OF_HOURS,
    Write,
    counted_writes,
    due_customer,
    due_instant,
    due_range,
    hour_write,
    seen_write,
    table_writes,
)
from tallygate.pipeline.rules import Rules
from tallygate.pipeline.state import PartitionState
from tallygate.pipeline.transition import (
    DeadLetter,
    Input,
    Outcome,
    RefusedInput,
    RequestInput,
    Tick,
    Transition,
    UsageInput,
    UsageRunInput,
)
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.journal import (
    PARTITION_KEY,
    AccountRow,
    Entry,
    PartitionRow,
    PoolBalance,
    encode_record,
    entry_key,
    producer_key,
    row_key,
    split_key,
)
from tallygate.schemas.reasons import Refused

_DEFAULT_RULES = Rules()


def decide(
    state: PartitionState, inputs: Sequence[Input], catalog: Catalog, rules: Rules = _DEFAULT_RULES
) -> Transition:
    """Everything that follows from these inputs."""
    draft = Draft(state, state.tariff(catalog), rules)
    reads_only = catalog.version == state.row.catalog
    draft.look_up(inputs)
    for each in inputs:
        match each:
            case RequestInput():
                draft.meet(each.source)
                _count(draft, each.request.customer)
                commands.answer(draft, each, advanced(draft, each.request.customer))
                reads_only = reads_only and isinstance(each.request, commands.READS)
            case UsageInput():
                draft.meet(each.source)
                if not _gather(draft, each):
                    _usage(draft, each)
                reads_only = False
            case UsageRunInput():
                _run(draft, each)
                reads_only = False
            case RefusedInput():
                draft.meet(each.source)
                _refused(draft, each)
                reads_only = False
            case Tick():
                draft.move_on(each.at)
                _count_all(draft)
                _tick(draft)
                reads_only = False
            case _:
                assert_never(each)
    _count_all(draft)
    return _finish(draft, reads_only)


def advanced(draft: Draft, customer: str) -> AccountDraft:
    """The customer's account with everything done that stream time brings."""
    account = draft.account(customer)
    if account.due_at and account.due_at <= draft.stream_at:
        while (at := _next_instant(account)) <= draft.stream_at:
            _happen(draft, account, at)
        account.due_at = 0 if at == FOREVER else at
    return account


def _next_instant(account: AccountDraft) -> int:
    return min(holds.next_instant(account), grants.next_instant(account))


def _happen(draft: Draft, account: AccountDraft, at: int) -> None:
    """What stream time does at one instant: grants and holds end, then grants begin.

    Grants end first: at this instant they no longer pay for what an ending hold settles.
    """
    grants.end_due(account, at)
    for hold in sorted((h for h in account.holds.values() if h.expires_at <= at), key=lambda h: h.id):
        reservations.end_of_time_to_live(draft, account, hold, at)
    grants.advance(account, at)


def _tick(draft: Draft) -> None:
    begin, end = due_range(draft.stream_at)
    for key, _ in draft.state.rows.scan(begin, end, draft.rules.due_per_tick_max):
        account = advanced(draft, due_customer(key))
        if account.row is not None and account.row.due_at != due_instant(key):
            # The table was resumed and did not see every move of the account: compaction had taken some by then.
            account.row = replace(account.row, was_due_at=due_instant(key))
    hours.end_closed(draft)
    batches.forget_idle(draft)


def _refused(draft: Draft, each: RefusedInput) -> None:
    draft.dead_letters.append(DeadLetter(each.source, each.reason, each.message))
    draft.outcomes.append(Outcome("input", "refused", each.reason))
    if each.route is not None:
        draft.refuse(each.route, each.id, "unknown", each.customer, each.reason, each.message)


def _gather(draft: Draft, each: UsageInput) -> bool:
    """Gather a record's events by customer, if all of them are of the ordinary sort."""
    source = each.source
    latest = draft.stream_at + draft.rules.future_ms_max
    members = []
    for event, id in zip(each.events, draft.digests(each), strict=True):
        weighed = draft.state.scales.weigh(event, source.at)
        if weighed is None or weighed.at > latest:
            return False
        members.append(Member(event, id, source.topic, source.partition, source.offset, draft.stream_at, weighed))
    for one in members:
        if draft.knows(one.digest):
            draft.duplicates += 1
            continue
        customer = one.event.subject
        gathered = draft.gathered.get(customer)
        if gathered is not None and gathered.account.due_at and gathered.account.due_at <= draft.stream_at:
            _count(draft, customer)
            gathered = None
        if gathered is None:
            gathered = draft.gathered[customer] = Gathering(advanced(draft, customer), draft.stream_at)
            gathered.account.know(draft.stream_at)
        draft.take_id(one.digest)
        draft.events += 1
        gathered.add(one, draft.rules.grace_ms)
    return True


def _count(draft: Draft, customer: str) -> None:
    """Count what was gathered of a customer, before anything else looks at the account."""
    gathered = draft.gathered.pop(customer, None)
    if gathered is not None:
        usage.count_gathered(draft, gathered)


def _count_all(draft: Draft) -> None:
    for gathered in draft.gathered.values():
        usage.count_gathered(draft, gathered)
    draft.gathered.clear()


def _usage(draft: Draft, each: UsageInput) -> None:
    """Count a record's events: all of them, or none and the record is a dead letter."""
    for event in each.events:
        _count(draft, event.subject)
    try:
        read = usage.read(draft, each.events, each.source)
    except Refused as refused:
        draft.dead_letters.append(DeadLetter(each.source, refused.reason, refused.message))
        draft.outcomes.append(Outcome("usage", "refused", refused.reason))
        return
    for one in read:
        usage.take(draft, advanced(draft, one.event.subject), one, each.source)


def _run(draft: Draft, each: UsageRunInput) -> None:
    """Count some customers of a run of batches; it is applied with the last of them."""
    assert each.catalog == draft.tariff.version, "groups are made under the catalog that they are counted under"
    assert each.source.offset > draft.applied.get(each.source.topic, -1), f"{each.source} is applied already"
    draft.stream_at = max(draft.stream_at, each.source.at)
    if each.first:
        assert draft.run is None, "one run at a time"
        batches.begin(draft, each)
    else:
        assert draft.run is not None
        assert draft.run.upto == each.source.offset, f"the run under way is another: {draft.run}"
    for customer, groups in each.customers:
        _count(draft, customer)
        batches.count(draft, advanced(draft, customer), groups, each)
    batches.end(draft, each)


def _finish(draft: Draft, reads_only: bool) -> Transition:
    for account in draft.accounts.values():
        _file_due(account, draft.stream_at)
    accounts = tuple(account for account in draft.accounts.values() if account.changed)
    if reads_only and not accounts:
        return Transition(replies=tuple(draft.replies), outcomes=tuple(draft.outcomes))
    records: list[Write] = []
    writes: list[Write] = []
    for account in accounts:
        _write(account, draft, records, writes)
    for producer, at in draft.producers.items():
        records.append((producer_key(producer), None if at is None else encode_record(at)))
        writes += table_writes(*records[-1])
    ended = _ended(draft)
    for key in ended:
        records.append((key, None))
        writes += table_writes(key, None)
    row = PartitionRow(draft.applied, draft.stream_at, draft.tariff.version, draft.run)
    records.append((PARTITION_KEY, encode_record(row)))
    writes.append(records[-1])
    return Transition(
        records=tuple(records),
        replies=tuple(draft.replies),
        dead_letters=tuple(draft.dead_letters),
        outcomes=tuple(draft.outcomes),
        events=draft.events,
        duplicates=draft.duplicates,
        row=row,
        writes=tuple(writes),
        drafts=accounts,
        ended=ended,
    )


def _ended(draft: Draft) -> tuple[bytes, ...]:
    """The rows of closed hours that go. Where a later one has taken the place of a usage row, that one is written."""
    found = []
    for key in draft.hours.ended:
        customer, kind, id = split_key(key)
        account = draft.accounts.get(customer)
        if account is None or kind != "usage" or id not in account.usage.changes:
            found.append(key)
    return tuple(found)


def _file_due(account: AccountDraft, stream_at: int) -> None:
    """Keep the account's wake-up no later than the next due instant, without a row for every small move of it."""
    row, due_at = account.row, account.due_at
    if row is None or row.due_at == due_at:
        return
    if row.due_at > stream_at and (not due_at or row.due_at < due_at):
        account.due_at = row.due_at
        return
    account.row = replace(row, due_at=due_at, was_due_at=row.due_at)


def _write(account: AccountDraft, draft: Draft, records: list[Write], writes: list[Write]) -> None:
    """Add an account's journal records, and what they come to in the local table."""
    customer = account.customer
    if account.row is not account.account.row:
        assert isinstance(account.row, AccountRow)
        records.append((row_key(customer, "account"), encode_record(account.row)))
        writes += table_writes(*records[-1])
    for kind, table in account.tables():
        for id, row in table.changes.items():
            if row is not None:
                records.append((row_key(customer, kind, id), encode_record(row)))
            elif id in table.base:
                records.append((row_key(customer, kind, id), None))
            else:
                continue
            writes.append(records[-1])
            if kind in OF_HOURS:
                writes.append(hour_write(*records[-1]))
    entry = _entry(account, draft)
    if entry is not None:
        records.append((entry_key(customer), encode_record(entry)))
        for counted, digests in account.counted:
            writes += counted_writes(entry.at, digests, encode_memory(counted))
        writes += [seen_write(entry.at, seen) for seen in entry.seen]


def _entry(account: AccountDraft, draft: Draft) -> Entry | None:
    if not (account.causes or account.postings or account.seen):
        return None
    _assert_balanced(account)
    return Entry(
        customer=account.customer,
        at=draft.stream_at,
        catalog=draft.tariff.version,
        causes=tuple(account.causes),
        postings=tuple(account.postings),
        decisions=tuple(account.decisions),
        usage=tuple(account.deltas),
        balances=_balances(account),
        seen=tuple(account.seen),
        alerts=tuple(account.alerts),
        counted=tuple([counted for counted, _ in account.counted]),
    )


def _assert_balanced(account: AccountDraft) -> None:
    total: dict[str, int] = {}
    for leg in account.postings:
        total[leg.asset] = total.get(leg.asset, 0) + leg.amount_nanos
    assert not any(total.values()), f"postings of {account.customer!r} do not balance: {total}"


def _balances(account: AccountDraft) -> tuple[PoolBalance, ...]:
    pools = sorted({leg.asset for leg in account.postings})
    found = []
    for name in pools:
        own = [grant for grant in account.grants.values() if grant.pool == name]
        row = account.pools.get(name)
        found.append(
            PoolBalance(
                name,
                sum(grant.balance_nanos for grant in own),
                sum(grant.held_nanos for grant in own),
                row.overage_nanos if row else 0,
            )
        )
    return tuple(found)
