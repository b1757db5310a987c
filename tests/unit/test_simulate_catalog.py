"""`tallygate simulate` with a catalog: the whole waterfall over events and requests, each answer worked out by hand."""

import json
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from tallygate.pipeline import catalog_scenario
from tallygate.pipeline.scenario_fields import ScenarioError
from tallygate.pipeline.simulate import check_scenarios, run_scenarios
from tallygate.topologies import cli_simulate
from tallygate.topologies.cli import app, main

DAY = "2026-01-01T"
METERS = {
    "tokens": {"event_type": "llm.call", "value": "tokens", "dimensions": ["team"]},
    "calls": {"event_type": "llm.call", "aggregation": "count", "dimensions": ["team"]},
}
LLM = {"meters": ["tokens", "calls"], "rates": [{"meter": "tokens", "credits": 1, "per": 1000}]}
CATALOG = {"meters": METERS, "features": {"llm": LLM}}


def at(clock: str, **more: Any) -> dict[str, Any]:
    return {"at": f"{DAY}{clock}Z", **more}


def reserve(clock: str, id: str, tokens: int, **more: Any) -> dict[str, Any]:
    return at(clock, op="reserve", id=id, feature="llm", quantities={"tokens": tokens}, **more)


def used(clock: str, tokens: int, **more: Any) -> dict[str, Any]:
    return at(clock, type="llm.call", data={"tokens": tokens, **more})


def scenario(*events: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "catalog": CATALOG,
        "customer": "acme",
        "start": at("00:00:00"),
        "grants": [{"id": "g", "amount": 10}],
        "events": list(events),
        **more,
    }


def outcomes(document: dict[str, Any]) -> list[tuple[str, str | None]]:
    """Reason and credits of each answer."""
    return [(each["reason"], each.get("credits")) for each in run_scenarios(document)["ops"]]


def catalog(plan: dict[str, Any] | None = None, **feature: Any) -> dict[str, Any]:
    plans = {"plans": {"p": {"entitlements": {"llm": "credits"}, **plan}}, "default_plan": "p"} if plan else {}
    return {"meters": METERS, "features": {"llm": {**LLM, **feature}}, **plans}


# ---- what is documented ----


def test_the_documented_examples_hold() -> None:
    module = re.search(r"```json\n(.*?)```", catalog_scenario.__doc__ or "", re.DOTALL)
    help = re.search(r"(\{\"customer\".*?\}\}\}\}\}\]\}\})", cli_simulate.simulate.__doc__ or "", re.DOTALL)
    assert module
    assert help
    for text in (module[1], help[1]):
        document = json.loads(text, parse_float=Decimal)
        assert check_scenarios(document) == []
        wrong = {**document, "expect": {"ops": [{}, {"credits": 5}]}}
        assert check_scenarios(wrong) == [
            "scenarios[0]: ops[1] at 2026-01-01T10:00:00Z: credits: expected 5, found 4",
        ]


# ---- the waterfall ----

WATERFALL = [
    ("credits", CATALOG, [reserve("01:00:00", "a", 10_000), reserve("01:00:01", "b", 1)], "allowed credits_exhausted"),
    (
        "overage up to 2",
        catalog(overage=2),
        [reserve("01:00:00", "a", 12_000), reserve("01:00:01", "b", 1)],
        "allowed credits_exhausted",
    ),
    (
        "a budget an hour",
        catalog({"budgets": {"b": {"limit": 3, "period": "hour"}}}),
        [used("01:10:00", 3000), reserve("01:20:00", "a", 1), reserve("02:00:00", "b", 3000)],
        "allowed budget_exhausted allowed",
    ),
    (
        "two calls a minute",
        catalog({"rate_limits": {"r": {"limit": 2, "per": "minute"}}}),
        [reserve("01:00:00", id, 1) for id in "abc"] + [reserve("01:00:30", "d", 1)],
        "allowed allowed rate_limited allowed",
    ),
    (
        "an allowance of two calls, then none",
        catalog({"entitlements": {"llm": {"meter": "calls", "limit": 2}}}),
        [reserve("01:00:00", id, 0) for id in "abc"],
        "allowed allowed allowance_exhausted",
    ),
    (
        "not in the plan",
        catalog({"entitlements": {"llm": False}}),
        [reserve("01:00:00", "a", 1)],
        "feature_not_entitled",
    ),
    (
        "suspended",
        CATALOG,
        [at("01:00:00", op="customer", suspended=True), reserve("01:00:01", "a", 1)],
        "allowed customer_suspended",
    ),
    ("unknown feature", CATALOG, [at("01:00:00", op="check", feature="x")], "feature_unknown"),
    (
        "released at its end: 8 held until 01:05:00",
        CATALOG,
        [reserve("01:00:00", "a", 8000), reserve("01:04:59", "b", 8000), reserve("01:05:00", "c", 8000)],
        "allowed credits_exhausted allowed",
    ),
    (
        "settled at its end",
        catalog(hold={"at_end": "settle"}),
        [reserve("01:00:00", "a", 8000), reserve("01:05:00", "b", 8000)],
        "allowed credits_exhausted",
    ),
]


@pytest.mark.parametrize(("own", "events", "reasons"), [each[1:] for each in WATERFALL], ids=[e[0] for e in WATERFALL])
def test_the_waterfall(own: dict[str, Any], events: list[dict[str, Any]], reasons: str) -> None:
    found = outcomes(scenario(*events, catalog=own))
    assert " ".join(reason for reason, _ in found) == reasons


def test_every_op_answers_in_full() -> None:
    """20 of a plan; 3 held, extended, 2 settled; an estimate of the rest; a voided grant; a reset forfeits all."""
    plan = {"grants": {"monthly": {"amount": 20}}}
    own = catalog(plan)
    del own["default_plan"]
    document = scenario(
        at("01:00:00", op="subscribe", id="s", plan="p"),
        reserve("02:00:00", "h", 3000),
        at("02:01:00", op="extend", hold="h", ttl_seconds=3600),
        at("02:02:00", op="settle", hold="h", quantities={"tokens": 2000}),
        at("02:03:00", op="estimate", feature="llm", of="tokens"),
        at("02:04:00", op="balance"),
        at("02:05:00", op="void-grant", grant="g"),
        at("02:06:00", op="reset"),
        catalog=own,
        queries=[at("02:07:00")],
    )
    ops = run_scenarios(document)["ops"]
    assert [each["op"] for each in ops] == [
        "subscribe",
        "reserve",
        "extend",
        "settle",
        "estimate",
        "balance",
        "void-grant",
        "reset",
    ]
    assert [each["allowed"] for each in ops] == [True] * 8
    assert ops[1]["hold"]["expires_at"] == "2026-01-01T02:05:00Z"
    assert ops[2]["hold"]["expires_at"] == "2026-01-01T03:01:00Z"
    assert ops[3]["paid"] == [{"grant": "g", "amount": "2"}]
    assert ops[4]["affordable"] == {"tokens": "28000"}
    assert [grant["balance"] for grant in ops[5]["statement"]["grants"]] == ["8", "20"]
    assert (ops[6]["credits"], ops[6]["balance"]) == ("8", "20")
    assert ops[7]["balance"] == "0"


def test_time_ends_things_exactly_when_they_end() -> None:
    """A hold of 2 settles as estimated at 00:59:00, in the first hour; the grant of 00:30:00 recurs at 01:30:00."""
    own = catalog({"budgets": {"b": {"limit": 9, "period": "hour"}}}, hold={"at_end": "settle", "ttl_seconds": 60})
    document = scenario(
        reserve("00:58:00", "h", 2000),
        at("00:30:00", op="grant", id="again", amount=4, priority=0, recurrence={"interval": "PT1H"}),
        used("01:10:00", 5000),
        catalog=own,
        queries=[at(clock) for clock in ("00:58:59", "00:59:00", "01:00:00", "01:20:00", "01:30:00")],
    )
    result = run_scenarios(document)
    seen = [query["customers"]["acme"] for query in result["queries"]]
    assert [each["limits"][0]["used"] for each in seen] == ["0", "2", "0", "5", "5"]
    assert [each["grants"]["again"]["balance"] for each in seen] == ["2", "2", "2", "0", "4"]
    assert [each["grants"]["g"]["balance"] for each in seen] == ["10", "10", "10", "7", "7"]
    assert [each["holds"] == {} for each in seen] == [False, True, True, True, True]
    assert [each["op"] for each in result["ops"]] == ["reserve", "grant", "usage"]


# ---- limits that only observe ----

OBSERVING = [
    ("budget", catalog({"budgets": {"b": {"limit": 1, "observe": True}}}), "budget_exhausted"),
    ("rate", catalog({"rate_limits": {"r": {"limit": 1, "per": "day", "observe": True}}}), "rate_limited"),
    (
        "allowance",
        catalog({"entitlements": {"llm": {"meter": "calls", "limit": 1, "observe": True}}}),
        "allowance_exhausted",
    ),
    ("credits", catalog(observe=True), "credits_exhausted"),
]


@pytest.mark.parametrize(("own", "reason"), [each[1:] for each in OBSERVING], ids=[each[0] for each in OBSERVING])
def test_a_limit_that_observes_allows_and_tells(own: dict[str, Any], reason: str) -> None:
    """The first call fits everywhere, the second nowhere."""
    document = scenario(reserve("01:00:00", "a", 1000), reserve("01:00:01", "b", 10_000), catalog=own)
    document["grants"] = [{"id": "g", "amount": 1 if reason == "credits_exhausted" else 100}]
    result = run_scenarios(document)
    assert [each.get("would_deny") for each in result["ops"]] == [None, [reason]]
    assert result["summary"]["decisions"]["reserve"] == {
        "allowed": 2,
        "denied": {},
        "refused": {},
        "would_deny": {reason: 1},
    }


# ---- usage ----


def test_events_are_counted_once_undone_and_refused() -> None:
    event = {"type": "llm.call", "id": "e", "data": {"tokens": 4000}}
    document = scenario(
        at("01:00:00", **event),
        at("01:00:01", **event),
        at("01:00:02", type="tallygate.usage.voided", data={"source": "scenario", "id": "e"}),
        at("01:00:03", type="sms.sent", data={}),
        used("01:00:04", 12_000),
    )
    result = run_scenarios(document)
    ops = result["ops"]
    assert [(each["allowed"], each["reason"], each["credits"], each["overage"]) for each in ops] == [
        (True, "allowed", "4", "0"),
        (True, "allowed", "0", "0"),
        (True, "allowed", "-4", "0"),
        (False, "type_unknown", "0", "0"),
        (True, "allowed", "12", "2"),
    ]
    assert ops[1]["duplicate"] is True
    assert ops[2]["paid"] == [{"grant": "g", "amount": "-4"}]
    assert ops[4]["features"] == {"llm": "12"}
    assert result["summary"]["charged"] == {"llm": "12"}
    assert result["summary"]["overage"] == {"llm": "2"}
    assert result["summary"]["decisions"]["usage"]["refused"] == {"type_unknown": 1}


def test_an_event_is_priced_at_its_own_time() -> None:
    rates = [*LLM["rates"], {"meter": "tokens", "credits": 3, "per": 1000, "since": f"{DAY}06:00:00Z"}]
    document = scenario(
        at("07:00:00", type="llm.call", data={"tokens": 1000}),
        at("07:00:00", type="llm.call", data={"tokens": 1000}, time=f"{DAY}05:00:00Z"),
        catalog=catalog(rates=rates),
    )
    assert outcomes(document) == [("allowed", "3"), ("allowed", "1")]


def test_postings_are_the_ledgers() -> None:
    result = run_scenarios(scenario(used("01:00:00", 12_000), postings=True))
    legs = [(leg["account"], leg["amount"], leg["cause"]) for leg in result["postings"]]
    assert legs == [
        ("issued:paid", "-10", "g"),
        ("grant:g", "10", "g"),
        ("grant:g", "-10", "usage-0"),
        ("consumed:llm", "10", "usage-0"),
        ("overage", "-2", "usage-0"),
        ("consumed:llm", "2", "usage-0"),
    ]
    assert "postings" not in run_scenarios(scenario(used("01:00:00", 1)))


def test_customers_have_a_world_each() -> None:
    document = {
        "catalog": CATALOG,
        "grants": [{"id": "g", "amount": 10, "customer": name} for name in ("acme", "bolt")],
        "events": [
            {**used("01:00:00", 4000), "subject": "acme"},
            {**used("01:00:00", 1000), "customer": "bolt"},
        ],
        "queries": [at("02:00:00"), at("02:00:00", customer="bolt")],
    }
    first, second = run_scenarios(document)["queries"]
    balances = {name: each["pools"]["credits"]["balance"] for name, each in first["customers"].items()}
    assert balances == {"acme": "6", "bolt": "9"}
    assert list(second["customers"]) == ["bolt"]


# ---- the start ----


def test_grants_of_the_start() -> None:
    """Priorities, then creation; one that is over is not given; one is voided on the way; balances as they are said."""
    document = scenario(
        used("01:00:00", 5000),
        start={"at": f"{DAY}00:00:00Z", "balances": {"old": "1.5"}},
        grants=[
            {"id": "young", "amount": 4, "created_at": "2025-06-01T00:00:00Z"},
            {"id": "old", "amount": 4, "created_at": "2025-01-01T00:00:00Z", "effective_at": "2025-01-01T00:00:00Z"},
            {"id": "gone", "amount": 4, "expires_at": f"{DAY}00:00:00Z"},
            {"id": "ends", "amount": 4, "priority": 9, "voided_at": f"{DAY}02:00:00Z"},
            {"id": "later", "amount": 7, "effective_at": f"{DAY}03:00:00Z"},
        ],
        queries=[at("02:00:00"), at("03:00:00")],
    )
    result = run_scenarios(document)
    assert result["ops"][0]["paid"] == [{"grant": "old", "amount": "1.5"}, {"grant": "young", "amount": "3.5"}]
    balances = [query["customers"]["acme"]["pools"]["credits"]["balance"] for query in result["queries"]]
    assert balances == ["0.5", "7.5"]


def test_events_happen_in_order_of_time_and_answer_in_order_of_the_file() -> None:
    document = scenario(reserve("02:00:00", "late", 1), reserve("01:00:00", "early", 10_000))
    assert [(each["id"], each["allowed"]) for each in run_scenarios(document)["ops"]] == [
        ("late", True),
        ("early", True),
    ]
    first = scenario(reserve("01:04:00", "late", 1), reserve("01:00:00", "early", 10_000))
    assert [each["reason"] for each in run_scenarios(first)["ops"]] == ["credits_exhausted", "allowed"]


# ---- what is wrong ----

WRONG = [
    (
        {"events": [{"at": "soon", "type": "x"}]},
        "events[0].at: 'soon' is no instant: write it like 2026-01-31T00:00:00Z",
    ),
    ({"events": [at("01:00:00", op="pay")]}, "events[0].op: unknown op 'pay'; known: usage, reserve, settle, release,"),
    ({"events": [at("01:00:00")]}, "events[0].type: is missing"),
    ({"events": [used("01:00:00", 1) | {"tokens": 1}]}, "events[0].tokens: unknown field; known: at, type, data"),
    ({"events": [at("01:00:00", op="reserve")]}, "events[0]: Object missing required field `feature`"),
    (
        {"events": [at("01:00:00", op="reserve", feature="llm", quantites={})]},
        "events[0]: Object contains unknown field `quantites`",
    ),
    (
        {"events": [used("01:00:00", 1)], "customer": None},
        "events[0]: the event has no subject: set it to the customer",
    ),
    ({"events": [used("01:00:00", 1)], "start": at("02:00:00")}, "events[0].at: before the start"),
    ({"queries": [at("01:00:00")], "start": at("02:00:00")}, "queries[0].at: before the start"),
    ({"start": None, "queries": []}, "start.at: is missing, and no event says when"),
    ({"start": at("00:00:00", balances={"x": 1})}, "start.balances.x: customer 'acme' has no such grant"),
    ({"start": at("00:00:00", balances={"g": -1})}, "start.balances.g: -1 is negative"),
    ({"usage": []}, "usage: unknown field; known: name, catalog, customer, start, grants, events"),
    ({"grants": [{"id": "g", "amount": "much"}]}, "grants[0]: Invalid decimal string - at `$.amount`"),
    ({"grants": [{"id": "g", "amount": 1}, {"id": "g", "amount": 2}]}, "grants[1].id: 'g' is there twice"),
    ({"catalog": {"meters": {"m": {}}}}, "catalog: meters.m"),
    ({"catalog": None}, "catalog: is missing: write it into the scenario, or give one with --catalog"),
    ({"postings": "yes"}, "postings: wants true or false"),
    ({"events": [used("01:00:00", 1, team="\ud800")]}, "events[0]: cannot be sent as JSON: "),
]


@pytest.mark.parametrize(("part", "message"), WRONG, ids=[message[:40] for _, message in WRONG])
def test_one_line_names_what_is_wrong(part: dict[str, Any], message: str) -> None:
    with pytest.raises(ScenarioError) as caught:
        run_scenarios({**scenario(), **part})
    assert str(caught.value).startswith(message)
    assert "\n" not in str(caught.value)


def test_among_scenarios_a_refused_one_says_so_and_the_others_run() -> None:
    good, bad = scenario(used("01:00:00", 1000)), scenario(catalog=None)
    results = run_scenarios({"scenarios": [good, bad, good]})["results"]
    assert [sorted(each) for each in results] == [
        ["ops", "queries", "summary"],
        ["error"],
        ["ops", "queries", "summary"],
    ]


def test_expectations_name_what_they_like() -> None:
    document = scenario(used("01:00:00", 4000), queries=[at("02:00:00")])
    wrong = {
        "ops": [{"credits": "4.0", "paid": [{"amount": 3}]}],
        "queries": [{"customers": {"acme": {"pools": {"credits": {"balance": 6, "held": 1}}, "holds": {"h": {}}}}}],
        "summary": {"charged": {"llm": 5}},
    }
    assert check_scenarios({**document, "name": "n", "expect": wrong}) == [
        "n: ops[0] at 2026-01-01T01:00:00Z: paid[0].amount: expected 3, found 4",
        "n: queries[0] at 2026-01-01T02:00:00Z: customers.acme.pools.credits.held: expected 1, found 0",
        "n: queries[0] at 2026-01-01T02:00:00Z: customers.acme.holds.h: expected {}, found None",
        "n: summary: charged.llm: expected 5, found 4",
    ]


# ---- plain scenarios: how usage becomes what is burnt ----

PLAIN = {
    "start": at("00:00:00"),
    "grants": [{"id": "g", "amount": 100}],
    "usage": [at("01:10:00", amount=3), at("01:20:00", amount=7), at("01:30:00", amount=5), at("02:00:00", amount=4)],
    "ops": [at("02:30:00", op="usage", amount=6), at("02:40:00", op="reserve", id="h", amount=9)],
    "queries": [at("03:00:00")],
}


@pytest.mark.parametrize(
    ("aggregation", "left"),
    [("sum", "75"), ("count", "95"), ("max", "87")],  # 3+7+5+4+6; five of them; 7 in the first hour, 6 in the second
)
def test_aggregations_of_a_plain_scenario(aggregation: str, left: str) -> None:
    result = run_scenarios({**PLAIN, "aggregation": aggregation})
    [query] = result["queries"]
    assert query["balance"] == left
    assert query["usage_in_period"] == str(100 - int(left))
    assert [op["allowed"] for op in result["ops"]] == [True, True]


def test_a_count_needs_no_amounts() -> None:
    counted = {**PLAIN, "aggregation": "count", "usage": [at("01:00:00"), at("01:00:00")], "ops": []}
    [query] = run_scenarios(counted)["queries"]
    assert query["balance"] == "98"
    with pytest.raises(ScenarioError, match=r"usage\[0\].amount: is missing"):
        run_scenarios({**counted, "aggregation": "sum"})


@pytest.mark.parametrize("aggregation", ["min", "latest", "unique", "median"])
def test_aggregations_that_burn_no_clear_number_are_refused(aggregation: str) -> None:
    with pytest.raises(
        ScenarioError, match=f"aggregation: '{aggregation}' burns no clear number of credits; known: sum"
    ):
        run_scenarios({**PLAIN, "aggregation": aggregation})


# ---- the command ----


def written(folder: Path, document: dict[str, Any]) -> str:
    path = folder / "scenario.json"
    path.write_text(json.dumps(document))
    return str(path)


def test_the_command_runs_and_checks(tmp_path: Path) -> None:
    runner = CliRunner()
    document = scenario(used("01:00:00", 4000), expect={"summary": {"charged": {"llm": 4}}})
    path = written(tmp_path, document)
    done = runner.invoke(app, ["simulate", path])
    assert done.exit_code == 0
    assert json.loads(done.stdout)["summary"]["charged"] == {"llm": "4"}
    assert runner.invoke(app, ["simulate", path, "--check"]).stdout == "no differences\n"
    through = runner.invoke(app, ["simulate", "-", "--check"], input=json.dumps(document))
    assert (through.exit_code, through.stdout) == (0, "no differences\n")


def test_what_is_wrong_is_one_line_and_exit_code_2(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, scenario(used("01:00:00", 1), start=at("02:00:00")))
    monkeypatch.setattr("sys.argv", ["tallygate", "simulate", path])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == "tallygate: events[0].at: before the start\n"


def test_the_command_takes_another_catalog(tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text(json.dumps(catalog(rates=[{"meter": "tokens", "credits": 2, "per": 1000}])))
    document = scenario(used("01:00:00", 4000), expect={"summary": {"charged": {"llm": 4}}})
    done = CliRunner().invoke(app, ["simulate", written(tmp_path, document), "--check", "--catalog", str(other)])
    assert done.exit_code == 1
    assert done.stdout == "scenarios[0]: summary: charged.llm: expected 4, found 8\n1 difference\n"
    del document["catalog"]
    assert CliRunner().invoke(app, ["simulate", written(tmp_path, document), "--catalog", str(other)]).exit_code == 0
