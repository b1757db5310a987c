"""Rate cards from the model prices of the package `genai-prices`.

The package knows dollars for a million tokens, by provider and model, with the dates from which they hold and tiers by
the size of the context. Four meters are priced: `input_tokens` (neither read from a cache nor written to one),
`cached_input_tokens`, `cache_write_tokens` and `output_tokens`. Where a model has no price of its own for cached or
written input, the package counts it as input, and so does the card.

Nothing is fetched: the prices are those that the installed package carries.
"""

import re
from collections.abc import Iterator
from datetime import date
from decimal import Context, Decimal, Inexact
from importlib.metadata import version
from typing import TYPE_CHECKING, Final, NamedTuple

import msgspec

from tallygate.schemas.amounts import NANOS, UNITS_MAX, from_nanos
from tallygate.topologies.exits import Exit, Trouble

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo, ModelPrice, Provider, TieredPrices

PACKAGE: Final = "genai-prices"
#: Meter → the package's names of its price, the first that a model has.
METERS: Final = {
    "input_tokens": ("input_mtok",),
    "cached_input_tokens": ("cache_read_mtok", "input_mtok"),
    "cache_write_tokens": ("cache_write_mtok", "cache_write_5m_mtok", "input_mtok"),
    "output_tokens": ("output_mtok",),
}
_PER: Final = 1_000_000
_PLACES_MAX: Final = 9
_EXACT: Final = Context(prec=80, traps=[Inexact])
_PLAIN: Final = re.compile(r"[A-Za-z][A-Za-z0-9_./-]*")
_WORDS: Final = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}


_NOTES: Final = (
    "# input_tokens are those neither read from a cache nor written to one: subtract cached tokens where a",
    "# provider's count of input includes them.",
    "# Prices are exact to 24 decimal places of a credit; further ones are rounded.",
    "# Standard processing only (no batch discount); cache writes at the price of the shortest time to live;",
    "# where a provider's price depends on the hour of the day, the dearest hour's.",
    "# Tiers go by the meter's own quantity in a call. A provider that goes by the size of the whole context",
    "# charges more than is written here for output, and for short input after a long cached one: see the",
    "# comments there.",
)


class PriceCard(NamedTuple):
    """What to make: whose prices, at how many credits (nanos) a dollar, with how many per cent (nanos) on top."""

    providers: tuple[str, ...]
    models: tuple[str, ...]
    credits_per_usd: int
    markup_percent: int
    feature: str

    @property
    def factor(self) -> Decimal:
        """Credits for a dollar, exactly."""
        return _EXACT.multiply(
            Decimal(self.credits_per_usd).scaleb(-9),
            Decimal(100 * NANOS + self.markup_percent).scaleb(-11),
        )


class Price(NamedTuple):
    """Dollars for a million tokens, and for all of a call above each size."""

    base: Decimal
    tiers: tuple[tuple[int, Decimal], ...] = ()


class Line(NamedTuple):
    """One rate: the meter's price from a date on (None: ever since)."""

    meter: str
    since: date | None
    price: Price


def catalogue(providers: list[str]) -> list[str]:
    """What the package knows: its providers, or the models of some."""
    if not providers:
        return [f"{each.id}: {each.name}, {len(each.models)} models" for each in _all_providers()]
    return [f"{each.id}: {model.id}" for each in _chosen(tuple(providers)) for model in each.models]


def rate_card(card: PriceCard, today: date) -> str:
    """The YAML text of a rate card. Raises Trouble where a provider or model is not known, or has no token prices."""
    if not card.providers:
        raise Trouble(Exit.WRONG, "choose providers with --provider; `tallygate catalog import-prices --list` has them")
    if not card.credits_per_usd:
        raise Trouble(Exit.WRONG, "--credits-per-usd must be more than 0")
    providers = _chosen(card.providers)
    models, left_out = _models(card, providers)
    text = [*_header(card, today, left_out), "", "rate_cards:"]
    for provider in providers:
        own = [(name, model) for home, name, model in models if home is provider]
        if not own:
            continue
        text += [f"  {_slug(provider.id)}:", f"    feature: {_scalar(card.feature)}", "    rates:"]
        for name, model in own:
            when = {"model": name}
            if len(providers) > 1:
                when = {"provider": provider.id, **when}
            text += [f"      {line}" for line in _model_lines(card, model, when)]
    return "\n".join(text) + "\n"


def _all_providers() -> "list[Provider]":
    try:
        from genai_prices.data import providers
    except ImportError as error:
        raise Trouble(Exit.AWAY, f"the package {PACKAGE} is not installed ({error}): pip install {PACKAGE}") from error
    return providers


def _chosen(names: tuple[str, ...]) -> "list[Provider]":
    known = {each.id: each for each in _all_providers()}
    for name in names:
        if name not in known:
            raise Trouble(Exit.WRONG, f"{PACKAGE} has no provider {name!r}; it has: {', '.join(sorted(known))}")
    return [known[name] for name in dict.fromkeys(names)]


def _models(card: PriceCard, providers: "list[Provider]") -> "tuple[list[tuple[Provider, str, ModelInfo]], list[str]]":
    """The models to price under the names that events give them, and those without token prices."""
    found, left_out = [], []
    if not card.models:
        for provider in providers:
            for model in provider.models:
                if lines(model):
                    found.append((provider, model.id, model))
                else:
                    left_out.append(f"{provider.id}/{model.id}")
        return found, left_out
    for name in dict.fromkeys(card.models):
        # The package's own rules match names with dates and suffixes to the model that they mean.
        matches = [(provider, own) for provider in providers if (own := provider.find_model(name)) is not None]
        if not matches:
            raise Trouble(Exit.WRONG, f"{PACKAGE} has no model {name!r} of {', '.join(card.providers)}")
        if not any(lines(model) for _, model in matches):
            raise Trouble(Exit.WRONG, f"{PACKAGE} has no token prices of model {name!r}")
        found += [(provider, name, model) for provider, model in matches if lines(model)]
    return found, left_out


def lines(model: "ModelInfo") -> list[Line]:
    """What a model's tokens cost, meter by meter, a line for each date on which a price changes."""
    found: list[Line] = []
    for meter, names in METERS.items():
        last: Price | None = None
        for since, prices in _by_date(model):
            price = next((_price(value) for name in names if (value := getattr(prices[0], name)) is not None), None)
            for other in prices[1:]:
                price = _dearer(price, other, names)
            if price is not None and price != last:
                found.append(Line(meter, since, price))
                last = price
    return found


def _by_date(model: "ModelInfo") -> "Iterator[tuple[date | None, list[ModelPrice]]]":
    """The prices from each date on; beside them, those that hold at some hours of the day."""
    from genai_prices.types import ModelPrice, StartDateConstraint

    if isinstance(model.prices, ModelPrice):
        yield None, [model.prices]
        return
    hourly = [
        each.prices
        for each in model.prices
        if each.constraint is not None and not isinstance(each.constraint, StartDateConstraint)
    ]
    dated: dict[date | None, ModelPrice] = {}
    for each in model.prices:  # a later one of the same date takes precedence
        if each.constraint is None:
            dated[None] = each.prices
        elif isinstance(each.constraint, StartDateConstraint):
            dated[each.constraint.start_date] = each.prices
    for since in sorted(dated, key=lambda day: day or date.min):
        yield since, [dated[since], *hourly]


def _dearer(price: Price | None, other: "ModelPrice", names: tuple[str, ...]) -> Price | None:
    found = next((_price(value) for name in names if (value := getattr(other, name)) is not None), None)
    if price is None or found is None:
        return price or found
    return max(price, found)


def _price(value: "Decimal | TieredPrices") -> Price:
    if isinstance(value, Decimal):
        return Price(value)
    return Price(value.base, tuple((tier.start, tier.price) for tier in value.tiers))


def _header(card: PriceCard, today: date, left_out: list[str]) -> Iterator[str]:
    yield f"# Model prices of {PACKAGE} {version(PACKAGE)}, written on {today} by `tallygate catalog import-prices`."
    yield (
        f"# {from_nanos(card.credits_per_usd)} credits a US dollar, {from_nanos(card.markup_percent)} per cent added: "
        f"a dollar of the provider's price is {_plain(card.factor)} credits."
    )
    by = "dimensions model and provider" if len(set(card.providers)) > 1 else "dimension model"
    yield "#"
    yield f"# Needs the meters {', '.join(METERS)}"
    yield f"# in feature {card.feature}, by {by}, and events that name models as here."
    yield from _NOTES
    for each in left_out:
        yield f"# No token prices: {each}"


def _model_lines(card: PriceCard, model: "ModelInfo", when: dict[str, str]) -> Iterator[str]:
    found = lines(model)
    yield f"# {model.name or model.id}{': deprecated' if model.deprecated else ''}"
    named = ", ".join(f"{key}: {_scalar(value)}" for key, value in when.items())
    for line in found:
        own = line.price.tiers if line.meter != "output_tokens" else ()
        scaled = [_EXACT.multiply(price, card.factor) for price in (line.price.base, *(price for _, price in own))]
        per = _PER
        while any(_places(each) > _PLACES_MAX for each in scaled) and per < UNITS_MAX:
            per *= 10
            scaled = [each.scaleb(1) for each in scaled]
        scaled = [round(each, _PLACES_MAX) for each in scaled]
        fields = [f"meter: {line.meter}", f"credits: {_plain(scaled[0])}", f"per: {per}", f"when: {{{named}}}"]
        if line.since is not None:
            fields.append(f"since: {line.since}T00:00:00Z")
        if own:
            tiers = zip(own, scaled[1:], strict=True)
            fields.append(
                f"tiers: [{', '.join(f'{{above: {above}, credits: {_plain(price)}}}' for (above, _), price in tiers)}]"
            )
        yield f"- {{{', '.join(fields)}}}"
        if line.meter == "output_tokens":
            for above, price in line.price.tiers:
                dear = _plain(_EXACT.multiply(price, card.factor))
                yield f"# the provider charges as for {dear} per {_PER} of output above {above} tokens of context"


def _places(value: Decimal) -> int:
    exponent = value.normalize(_EXACT).as_tuple().exponent
    assert isinstance(exponent, int), f"{value} is not finite"
    return -exponent


def _plain(value: Decimal) -> str:
    text = f"{value:f}"
    return text.rstrip("0").rstrip(".") if "." in text else text


def _scalar(text: str) -> str:
    """A text as YAML reads it back."""
    if _PLAIN.fullmatch(text) and text.lower() not in _WORDS:
        return text
    return msgspec.json.encode(text).decode()


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]", "-", text.lower())
