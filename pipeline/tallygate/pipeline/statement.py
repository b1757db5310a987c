"""Views: how accounts, holds and shares look in an answer."""

from tallygate.pipeline import budgets, entitlements
from tallygate.pipeline.account import AccountDraft
from tallygate.pipeline.credits import Shares, burn_order
from tallygate.pipeline.tariff import Offer
from tallygate.schemas.amounts import from_nanos
from tallygate.schemas.answers import GrantView, HoldView, PoolView, Share, Statement, SubscriptionView
from tallygate.schemas.instants import format_instant
from tallygate.schemas.journal import GrantRow, HoldRow


def shares_view(shares: Shares) -> tuple[Share, ...]:
    return tuple(Share(share.id, from_nanos(share.nanos)) for share in shares)


def hold_view(hold: HoldRow) -> HoldView:
    return HoldView(
        hold.id,
        hold.feature,
        from_nanos(hold.credits_nanos),
        format_instant(hold.expires_at),
        shares_view(hold.receipt),
        {meter: from_nanos(nanos) for meter, nanos in hold.quantities.items()},
    )


def statement(account: AccountDraft, offer: Offer, at: int) -> Statement:
    """Everything a customer has, as it is at `at`."""
    grants = sorted(account.grants.values(), key=burn_order)
    pools = []
    for name in sorted({grant.pool for grant in grants} | {pool.pool for pool in account.pools.values()}):
        own = [grant for grant in grants if grant.pool == name]
        row = account.pool(name)
        pools.append(
            PoolView(
                name,
                from_nanos(sum(grant.balance_nanos for grant in own)),
                from_nanos(sum(grant.held_nanos for grant in own)),
                from_nanos(row.overage_nanos),
                from_nanos(row.usage_nanos) if row.usage_nanos else "0",  # the literal is left out on the wire
                format_instant(row.period_at) if row.period_at else None,
            )
        )
    open_holds = sorted(account.holds.values(), key=lambda hold: (hold.expires_at, hold.id))
    return Statement(
        pools=tuple(pools),
        grants=tuple(_grant_view(grant) for grant in grants),
        holds=tuple(hold_view(hold) for hold in open_holds),
        limits=budgets.states(account, offer, at),
        subscription=_subscription_view(account),
        entitlements=entitlements.states(account, offer, at),
    )


def _subscription_view(account: AccountDraft) -> SubscriptionView | None:
    row = account.subscription
    if row is None:
        return None
    return SubscriptionView(row.plan, format_instant(row.anchor), format_instant(row.since), row.add_ons)


def _grant_view(grant: GrantRow) -> GrantView:
    return GrantView(
        id=grant.id,
        pool=grant.pool,
        amount=from_nanos(grant.amount_nanos),
        balance=from_nanos(grant.balance_nanos),
        held=from_nanos(grant.held_nanos),
        priority=grant.priority,
        category=grant.category,
        effective_at=format_instant(grant.effective_at),
        expires_at=None if grant.expires_at is None else format_instant(grant.expires_at),
        active=grant.active,
    )
