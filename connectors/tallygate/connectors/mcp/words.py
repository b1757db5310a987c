"""A decision in words, for whoever reads and does not parse."""

from typing import Final

from tallygate.schemas.answers import Answer, LimitState
from tallygate.schemas.reasons import Reason

WHY: Final = {
    Reason.CUSTOMER_UNKNOWN: "the customer is not known: it was never given credits, a plan or a budget",
    Reason.CUSTOMER_SUSPENDED: "the customer is suspended",
    Reason.FEATURE_UNKNOWN: "the catalog in force has no such feature",
    Reason.FEATURE_NOT_ENTITLED: "the customer's plan does not include this feature",
    Reason.RATE_LIMITED: "it comes too soon after what came before",
    Reason.BUDGET_EXHAUSTED: "a budget has too little left",
    Reason.ALLOWANCE_EXHAUSTED: "the period's allowance has too little left",
    Reason.CREDITS_EXHAUSTED: "there are too few credits",
}


def in_words(answer: Answer) -> str:
    """One paragraph: yes or no, why, and what would help."""
    if answer.allowed:
        cost = f" It costs {answer.credits} credits." if answer.credits not in (None, "0") else ""
        left = f" {answer.balance} credits are left." if answer.balance is not None else ""
        return f"Allowed.{cost}{left}" if not answer.fallback else f"Allowed without a decision: {answer.message}."
    said = [f"Denied: {WHY.get(answer.reason, answer.message or answer.reason)}."]
    said += [_limit(each) for each in answer.limits if not each.ok and each.hard and not each.observe]
    if answer.retry_after_ms is not None:
        said.append(f"Trying again helps in {answer.retry_after_ms} ms, not before.")
    return " ".join(said)


def _limit(limit: LimitState) -> str:
    what = {"budget": "The budget", "credits": "The pool", "rate": "The rate limit", "allowance": "The allowance"}
    of = f" of {', '.join(f'{name} {value}' for name, value in limit.scope.items())}" if limit.scope else ""
    until = f" It resets at {limit.resets_at}." if limit.resets_at else ""
    return (
        f"{what[limit.kind]} {limit.name!r}{of} has {limit.remaining} of {limit.limit} {limit.unit} left "
        f"({limit.used} used, {limit.held} held), and {limit.asked} is asked.{until}"
    )
