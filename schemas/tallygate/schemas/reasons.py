"""The closed list of reasons. Part of the wire contract: added to, never renamed."""

from enum import StrEnum, unique


@unique
class Reason(StrEnum):
    """Why an input was allowed, denied (a limit said no) or refused (the input itself is wrong)."""

    ALLOWED = "allowed"

    # denied: the waterfall said no
    CUSTOMER_UNKNOWN = "customer_unknown"
    CUSTOMER_SUSPENDED = "customer_suspended"
    FEATURE_UNKNOWN = "feature_unknown"
    FEATURE_NOT_ENTITLED = "feature_not_entitled"
    RATE_LIMITED = "rate_limited"
    BUDGET_EXHAUSTED = "budget_exhausted"
    ALLOWANCE_EXHAUSTED = "allowance_exhausted"
    CREDITS_EXHAUSTED = "credits_exhausted"
    CUSTOMER_STRICT = "customer_strict"

    # refused: nothing was decided, nothing was counted
    MALFORMED = "malformed"
    TYPE_UNKNOWN = "type_unknown"
    CUSTOMER_MISSING = "customer_missing"
    QUANTITY_INVALID = "quantity_invalid"
    TIME_IN_FUTURE = "time_in_future"
    TOO_LARGE = "too_large"
    WRONG_PARTITION = "wrong_partition"
    REPLY_TOPIC_NOT_ALLOWED = "reply_topic_not_allowed"
    ID_CONFLICT = "id_conflict"
    HOLD_UNKNOWN = "hold_unknown"
    HOLD_ENDED = "hold_ended"
    METER_UNKNOWN = "meter_unknown"
    GRANT_UNKNOWN = "grant_unknown"
    GRANT_ENDED = "grant_ended"
    GRANT_BACKDATED = "grant_backdated"
    RESET_REFUSED = "reset_refused"
    BUDGET_FIXED = "budget_fixed"
    PLAN_UNKNOWN = "plan_unknown"
    EVENT_UNKNOWN = "event_unknown"
    UNPRICED = "unpriced"


#: Reasons with which a decision says no; the others refuse the input.
DENIALS = frozenset(
    {
        Reason.CUSTOMER_UNKNOWN,
        Reason.CUSTOMER_SUSPENDED,
        Reason.FEATURE_UNKNOWN,
        Reason.FEATURE_NOT_ENTITLED,
        Reason.RATE_LIMITED,
        Reason.BUDGET_EXHAUSTED,
        Reason.ALLOWANCE_EXHAUSTED,
        Reason.CREDITS_EXHAUSTED,
        Reason.CUSTOMER_STRICT,
    }
)


class Refused(Exception):
    """An input that is wrong in itself: a reason from the list and one clear line for whoever sent it."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.message = message
