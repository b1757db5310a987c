"""What requests carry: amounts in one form, mappings in one order, ids that follow from what they end."""

import hashlib
from collections.abc import Mapping
from decimal import Decimal

from tallygate.connectors.client_errors import RefusedRequest
from tallygate.schemas.amounts import AmountError, from_nanos, quantity_nanos
from tallygate.schemas.reasons import Reason

Amount = int | str | Decimal


def exact(name: str, value: Amount) -> Decimal:
    """An amount in its shortest form: the same amount is the same content, however it was written."""
    if isinstance(value, bool) or not isinstance(value, int | str | Decimal):
        raise TypeError(
            f"{name} is {value!r} ({type(value).__name__}): amounts are int, str or Decimal, "
            "because a float does not hold decimal amounts exactly"
        )
    try:
        return Decimal(from_nanos(quantity_nanos(value)))
    except AmountError as error:
        raise RefusedRequest(Reason.QUANTITY_INVALID, f"{name}: {error}") from None


def amounts(quantities: Mapping[str, Amount] | None) -> dict[str, Decimal]:
    return {meter: exact(meter, quantities[meter]) for meter in sorted(quantities)} if quantities else {}


def in_order(dimensions: Mapping[str, str] | None) -> dict[str, str]:
    return {name: dimensions[name] for name in sorted(dimensions)} if dimensions else {}


def id_of(op: str, customer: str, ended: str) -> str:
    """The one id under which a hold or a grant is ended this way, so that a repetition is known as one."""
    return hashlib.blake2b(f"{op}\0{customer}\0{ended}".encode(), digest_size=16).hexdigest()
