"""Rate cards from the prices of `genai-prices`: the package's own calculation and Tallygate's tariff agree."""

from datetime import UTC, date, datetime
from decimal import Decimal
from fractions import Fraction
from pathlib import Path

import pytest

from tallygate.pipeline.tariff import Tariff
from tallygate.schemas.amounts import NANOS
from tallygate.schemas.catalog import Catalog
from tallygate.schemas.instants import from_datetime
from tallygate.topologies.catalog_yaml import read_files
from tallygate.topologies.exits import Trouble
from tallygate.topologies.model_prices import METERS, PriceCard, catalogue, lines, rate_card

pytest.importorskip("genai_prices", reason="the package genai-prices is not installed")
from genai_prices import Usage
from genai_prices.data import providers
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    Provider,
    StartDateConstraint,
    Tier,
    TieredPrices,
    TimeOfDateConstraint,
)

TODAY = date(2026, 11, 22)
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DIMENSIONS = "[model, provider]"


def card(*chosen: str, models: tuple[str, ...] = (), per_usd: str = "1", markup: str = "0") -> PriceCard:
    def nanos(text: str) -> int:
        return int(Decimal(text) * NANOS)

    return PriceCard(chosen, models, nanos(per_usd), nanos(markup), "llm")


def applied(text: str, folder: Path) -> Catalog:
    """The catalog in which the card stands."""
    meters = "".join(
        f"  {name}: {{event_type: llm.call, value: {name}, dimensions: {DIMENSIONS}}}\n" for name in METERS
    )
    (folder / "prices.yaml").write_text(text, encoding="utf-8")
    (folder / "catalog.yaml").write_text(
        f"meters:\n{meters}features: {{llm: {{meters: [{', '.join(METERS)}]}}}}\n", encoding="utf-8"
    )
    return read_files(folder).compile(1)


def provider(id: str) -> Provider:
    return next(each for each in providers if each.id == id)


def expected(home: Provider, model: ModelInfo, tokens: dict[str, int], at: datetime) -> Fraction:
    """Dollars by the package's own calculation; its count of input includes cached and written tokens."""
    usage = Usage(
        input_tokens=tokens["input_tokens"] + tokens["cached_input_tokens"] + tokens["cache_write_tokens"],
        cache_read_tokens=tokens["cached_input_tokens"],
        cache_write_tokens=tokens["cache_write_tokens"],
        output_tokens=tokens["output_tokens"],
    )
    return Fraction(model.calc_price(usage, home, genai_request_timestamp=at).total_price)


@pytest.mark.parametrize("id", ["anthropic", "openai", "google", "mistral", "deepseek"])
def test_a_call_costs_what_the_package_says(id: str, tmp_path: Path) -> None:
    home = provider(id)
    tariff = Tariff(applied(rate_card(card(id, per_usd="100", markup="20"), TODAY), tmp_path))
    tokens = {"input_tokens": 1300, "cached_input_tokens": 700, "cache_write_tokens": 90, "output_tokens": 451}
    compared = 0
    for model in home.models:
        priced = {line.meter for line in lines(model)}
        if priced != set(METERS) or _by_the_hour(model):
            continue
        for at in (NOW, datetime(2023, 1, 1, tzinfo=UTC)):
            cost = sum(
                tariff.cost(meter, quantity * NANOS, {"model": model.id}, from_datetime(at))
                for meter, quantity in tokens.items()
            )
            exact = expected(home, model, tokens, at) * 120 * NANOS
            assert abs(cost - exact) <= len(METERS), f"{model.id} at {at}"
            compared += 1
    assert compared > 4


def _by_the_hour(model: ModelInfo) -> bool:
    return isinstance(model.prices, list) and any(
        isinstance(each.constraint, TimeOfDateConstraint) for each in model.prices
    )


def test_every_price_of_two_large_providers_makes_a_catalog_that_can_be_applied(tmp_path: Path) -> None:
    """Some of their prices have 18 places."""
    catalog = applied(rate_card(card("openrouter", "aws", per_usd="33.3", markup="7.77"), TODAY), tmp_path)
    assert len(catalog.features[0].rates) > 2000


@pytest.fixture
def vendor(monkeypatch: pytest.MonkeyPatch) -> Provider:
    """A provider of the package's own kind, with every form of price."""

    def model(id: str, prices: ModelPrice | list[ConditionalPrice]) -> ModelInfo:
        return ModelInfo(id=id, match=ClauseEquals(equals=id), name=id.title(), prices=prices)

    tiers = [Tier(start=200_000, price=Decimal("5"))]
    made = Provider(
        id="vendor",
        name="Vendor",
        api_pattern="x",
        models=[
            model("plain", ModelPrice(input_mtok=Decimal("2.5"), output_mtok=Decimal("10"))),
            model("tiny", ModelPrice(input_mtok=Decimal("0.000000001"), output_mtok=Decimal("0.1"))),
            model(
                "tiered",
                ModelPrice(
                    input_mtok=TieredPrices(base=Decimal("2.5"), tiers=tiers),
                    output_mtok=TieredPrices(base=Decimal("10"), tiers=tiers),
                ),
            ),
            model(
                "dated",
                [
                    ConditionalPrice(prices=ModelPrice(input_mtok=Decimal(4), output_mtok=Decimal(8))),
                    ConditionalPrice(
                        constraint=StartDateConstraint(start_date=date(2026, 5, 1)),
                        prices=ModelPrice(input_mtok=Decimal(3), output_mtok=Decimal(8)),
                    ),
                ],
            ),
            model("embedding", ModelPrice(input_mtok=Decimal("0.02"))),
            model("speech", ModelPrice(output_audio_mtok=Decimal(1))),
            model("odd: name", ModelPrice(input_mtok=Decimal(1), output_mtok=Decimal(1))),
        ],
    )
    monkeypatch.setattr("genai_prices.data.providers", [made])
    return made


def rate_lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if "meter:" in line or line.startswith("      # the")]


def test_cached_and_written_input_without_a_price_of_its_own_is_input(vendor: Provider) -> None:
    text = rate_card(card("vendor", models=("plain",), per_usd="10", markup="50"), TODAY)
    assert rate_lines(text) == [
        "- {meter: input_tokens, credits: 37.5, per: 1000000, when: {model: plain}}",
        "- {meter: cached_input_tokens, credits: 37.5, per: 1000000, when: {model: plain}}",
        "- {meter: cache_write_tokens, credits: 37.5, per: 1000000, when: {model: plain}}",
        "- {meter: output_tokens, credits: 150, per: 1000000, when: {model: plain}}",
    ]


def test_prices_stay_exact_however_small(vendor: Provider, tmp_path: Path) -> None:
    text = rate_card(card("vendor", models=("tiny",), markup="1"), TODAY)
    assert "{meter: input_tokens, credits: 0.000000101, per: 100000000, when: {model: tiny}}" in text
    rate = applied(text, tmp_path).features[0].rates[0]
    assert Fraction(rate.credits_nanos, rate.per_nanos) == Fraction("0.00000000101") / 10**6


def test_tiers_hold_for_input_and_are_told_for_output(vendor: Provider) -> None:
    text = rate_card(card("vendor", models=("tiered",)), TODAY)
    assert rate_lines(text)[0] == (
        "- {meter: input_tokens, credits: 2.5, per: 1000000, when: {model: tiered}, "
        "tiers: [{above: 200000, credits: 5}]}"
    )
    assert rate_lines(text)[-2:] == [
        "- {meter: output_tokens, credits: 10, per: 1000000, when: {model: tiered}}",
        "# the provider charges as for 5 per 1000000 of output above 200000 tokens of context",
    ]


def test_a_start_date_is_a_since_and_only_what_changes_is_written(vendor: Provider) -> None:
    text = rate_card(card("vendor", models=("dated",)), TODAY)
    assert [line for line in rate_lines(text) if "input_tokens" in line or "output" in line][:2] == [
        "- {meter: input_tokens, credits: 4, per: 1000000, when: {model: dated}}",
        "- {meter: input_tokens, credits: 3, per: 1000000, when: {model: dated}, since: 2026-05-01T00:00:00Z}",
    ]
    assert len([line for line in rate_lines(text) if "output" in line]) == 1


def test_models_without_token_prices_are_named_and_left_out(vendor: Provider, tmp_path: Path) -> None:
    text = rate_card(card("vendor"), TODAY)
    assert "# No token prices: vendor/speech" in text
    assert {rate.when["model"] for rate in applied(text, tmp_path).features[0].rates} == {
        "plain",
        "tiny",
        "tiered",
        "dated",
        "embedding",
        "odd: name",
    }


def test_a_model_is_named_as_events_name_it(tmp_path: Path) -> None:
    text = rate_card(card("anthropic", models=("claude-sonnet-4-5-20250929",)), TODAY)
    assert {rate.when["model"] for rate in applied(text, tmp_path).features[0].rates} == {"claude-sonnet-4-5-20250929"}


def test_several_providers_are_told_apart(tmp_path: Path) -> None:
    text = rate_card(card("anthropic", "google", models=("claude-sonnet-4-5",)), TODAY)
    found = [rate.when for rate in applied(text, tmp_path).features[0].rates if rate.meter == "input_tokens"]
    assert found == [{"provider": each, "model": "claude-sonnet-4-5"} for each in ("anthropic", "google")]


def test_the_header_says_where_the_prices_are_from() -> None:
    text = rate_card(card("anthropic", per_usd="100", markup="20"), TODAY)
    assert text.startswith("# Model prices of genai-prices ")
    assert "written on 2026-11-22" in text
    assert "# 100 credits a US dollar, 20 per cent added: a dollar of the provider's price is 120 credits." in text


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        (card(), "choose providers with --provider"),
        (card("openay"), "genai-prices has no provider 'openay'; it has: anthropic"),
        (card("openai", models=("gpt-99",)), "genai-prices has no model 'gpt-99' of openai"),
        (card("openai", per_usd="0"), "--credits-per-usd must be more than 0"),
    ],
)
def test_what_cannot_be_made(wrong: PriceCard, line: str) -> None:
    with pytest.raises(Trouble, match=line):
        rate_card(wrong, TODAY)


def test_what_there_is_can_be_listed() -> None:
    assert any(line.startswith("anthropic: Anthropic, ") for line in catalogue([]))
    assert "openai: gpt-4o" in catalogue(["openai"])
