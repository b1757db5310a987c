"""What each command sends, and how answers look: without a broker."""

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from msgspec.structs import asdict

from command_line import CommandLine
from sent_requests import SentRequests
from tallygate.connectors import client_async
from tallygate.schemas.answers import LimitState, Step
from tallygate.schemas.audit import AuditRecord, decode_audit
from tallygate.schemas.reasons import Reason
from tallygate.schemas.requests import OPS, Override, Recurring
from tallygate.topologies import audit_log

D = Decimal
ANCHOR = "2026-01-15T00:00:00Z"
AT = datetime(2026, 1, 15, tzinfo=UTC)


@pytest.fixture
def transport(monkeypatch: pytest.MonkeyPatch) -> SentRequests:
    standing_in = SentRequests()
    monkeypatch.setattr(client_async, "Transport", standing_in)
    return standing_in


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> list[AuditRecord]:
    """What goes into the audit log."""
    kept: list[AuditRecord] = []
    monkeypatch.setattr(audit_log, "write", lambda settings, topic, sent: kept.append(decode_audit(sent[0][1])))
    return kept


@pytest.fixture
def cli(
    transport: SentRequests,
    audit: list[AuditRecord],
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> CommandLine:
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("TALLYGATE_KAFKA_BROKERS", "127.0.0.1:1")
    return CommandLine(monkeypatch, capfd)


#: A command line, what its request says, and what is told of a yes.
COMMANDS: list[tuple[str, dict[str, Any], str]] = [
    (
        "reserve acme llm -q output_tokens=4096 -d user=ada --at-least output_tokens=500 --explain --ttl 60 --id h1",
        {
            "id": "h1",
            "quantities": {"output_tokens": D(4096)},
            "at_least": {"output_tokens": D(500)},
            "explain": True,
            "ttl_seconds": 60,
        },
        "allowed: 5 credits are held until 2026-01-31T00:05:00Z; 95 can be spent\nfor 500 output_tokens\nhold h1\n",
    ),
    ("settle acme h1 -q output_tokens=7", {"hold": "h1", "quantities": {"output_tokens": D(7)}}, "settled 5 credits"),
    ("release acme h1", {"hold": "h1"}, "released; 95 can be spent\n"),
    ("extend acme h1 --ttl 600", {"hold": "h1", "ttl_seconds": 600}, "held until 2026-01-31T00:10:00Z\n"),
    (
        "estimate acme llm --of output_tokens -q input_tokens=2000 -d model=small",
        {"of": "output_tokens", "quantities": {"input_tokens": D(2000)}, "dimensions": {"model": "small"}},
        "it would cost 5 credits; 95 can be spent\n",
    ),
    ("check acme llm --credits 5 --explain", {"credits": D(5), "explain": True}, "yes: it would cost 5 credits"),
    ("balance acme", {"customer": "acme"}, ""),
    (
        f"grant acme 2000 --every P1M --anchor {ANCHOR} --rollover-min 1 --rollover-max 500 --price 0.01",
        {
            "amount": D(2000),
            "recurrence": Recurring("P1M", AT),
            "rollover_min": D(1),
            "rollover_max": D(500),
            "price": D("0.01"),
        },
        "granted 5 credits to acme; 95 can be spent\n",
    ),
    ("void-grant acme g1", {"grant": "g1"}, "ended grant g1: 5 credits were left; 95 can be spent\n"),
    ("reset acme", {"pool": "credits", "preserve_overage": False}, "reset pool credits of acme; 95 can be spent\n"),
    ("reset acme --pool gpu --preserve-overage", {"pool": "gpu", "preserve_overage": True}, "reset pool gpu of acme"),
    (
        f"budget acme b --limit 9 --soft --anchor {ANCHOR} --threshold 100 --threshold 80 --observe --period day",
        {"hard": False, "anchor": AT, "thresholds": (80, 100), "observe": True, "period": "day"},
        "budget b of acme: 9 credits a day for the whole customer\n",
    ),
    (
        "rate-limit acme calls --limit 60 --per minute --burst 10 --scope user=*",
        {"limit": D(60), "per_seconds": 60, "burst": D(10), "scope": {"user": "*"}, "unit": "requests"},
        "rate limit calls of acme: 60 requests per minute, 10 at once for user=*\n",
    ),
    (
        "rate-limit acme tokens --unit output_tokens --limit 1000 --per 15m --observe",
        {"per_seconds": 900, "burst": None, "unit": "output_tokens", "observe": True},
        "rate limit tokens of acme: 1000 output_tokens per 15m for the whole customer\n",
    ),
    (
        f"subscribe acme pro --add-on seats --add-on pack --override chat=credits --anchor {ANCHOR}"
        " --override search=meter:searches,limit:5000,period:day,beyond:credits --override sso=true"
        " --override support=value:gold,twice",
        {
            "plan": "pro",
            "add_ons": ("seats", "pack"),
            "anchor": AT,
            "overrides": {
                "chat": Override("credit"),
                "search": Override("metered", "", "searches", D(5000), "day", "credits"),
                "sso": Override("boolean", "true"),
                "support": Override("static", "gold,twice"),
            },
        },
        "acme is on plan pro, with add-on seats, add-on pack, its own chat, its own search, its own sso",
    ),
    ("customer acme --suspend", {"suspended": True, "strict": None}, "acme is suspended\n"),
    ("customer acme --resume", {"suspended": False}, "acme may go on\n"),
    ("customer acme --strict", {"suspended": None, "strict": True}, "acme is strict: it gets no leases\n"),
    (
        "customer acme --resume --no-strict",
        {"suspended": False, "strict": False},
        "acme may go on and may have leases\n",
    ),
]


def test_every_request_has_a_command() -> None:
    assert {line.split()[0] for line, _, _ in COMMANDS} == set(OPS.values())


@pytest.mark.parametrize(
    ("line", "fields", "told"), COMMANDS, ids=lambda value: value if isinstance(value, str) else ""
)
def test_what_is_sent(cli: CommandLine, transport: SentRequests, line: str, fields: dict[str, Any], told: str) -> None:
    said = cli(*line.split())
    assert (said.code, said.err) == (0, "")
    assert said.out.startswith(told)
    [request] = transport.sent
    assert OPS[type(request)] == line.split()[0]
    assert request.customer == "acme"
    sent = asdict(request)
    assert {name: sent[name] for name in fields} == fields


@pytest.mark.parametrize("line", [line for line, _, _ in COMMANDS])
def test_what_is_changed_is_audited(
    cli: CommandLine, transport: SentRequests, audit: list[AuditRecord], line: str
) -> None:
    cli(*line.split())
    [request] = transport.sent
    op = line.split()[0]
    if op in ("reserve", "settle", "release", "extend", "check", "estimate", "balance"):
        assert audit == []
        return
    asked, ended = audit
    assert (asked.outcome, ended.outcome, asked.id) == ("asked", "done", ended.id)
    assert (asked.action, asked.customer, asked.target) == (op, "acme", request.id)
    assert not asked.details.keys() & {"type", "id", "customer"}


@pytest.mark.parametrize("line", [line for line, _, _ in COMMANDS])
def test_json_everywhere(cli: CommandLine, line: str) -> None:
    said = cli(*line.split(), "--json")
    assert said.code == 0
    assert said.out.startswith("{")
    assert said.out.count("\n") == 1


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("customer acme", "say --suspend or --resume, --strict or --no-strict"),
        ("rate-limit acme calls --limit 60 --per fortnight", "'fortnight' is no span"),
        ("grant acme 5 --every monthly", "every: 'monthly' is no interval"),
        ("extend acme h1 --ttl 0", "greater than or equal to 1"),
        ("reserve acme llm --at-least 500", "'500' is no NAME=VALUE"),
        ("budget acme b --limit 5 --threshold 0", "greater than or equal to 1"),
        ("subscribe acme pro --override chat=maybe", "'maybe': write true, false, credits"),
        ("subscribe acme pro --override chat=meter:calls", "write true, false, credits"),
        ("subscribe acme pro --override chat=meter:calls,limit:5,limit:6", "write true, false, credits"),
        ("subscribe acme pro --override chat=meter:calls,limit:many", "Invalid decimal string"),
        ("subscribe acme pro --override chat=meter:calls,limit:5,period:year", "Invalid enum value 'year'"),
        ("subscribe acme pro --override chat=meter:calls,limit:5,colour:red", "unknown field `colour`"),
        ("subscribe acme pro --override chat", "'chat' is no NAME=VALUE"),
        ("subscribe acme pro --anchor tomorrow", "'tomorrow' is no instant"),
    ],
)
def test_what_is_wrong_is_told_before_anything_is_sent(
    cli: CommandLine, transport: SentRequests, line: str, says: str
) -> None:
    said = cli(*line.split())
    assert (said.code, said.out) == (2, "")
    assert says in " ".join(said.err.replace("│", " ").split())
    assert transport.sent == []


RATE = LimitState("rate", "calls", False, "requests", "1", "10", "10", "0", "0", {"user": "ada"}, True, ANCHOR)
BUDGET = LimitState("budget", "team", False, "credits", "5", "100", "90", "8", "2", {}, False)
CREDITS = LimitState("credits", "credits", True, "credits", "5", "500", "0", "0", "500")


def test_a_denial_is_one_readable_block(cli: CommandLine, transport: SentRequests) -> None:
    transport.reason = Reason.RATE_LIMITED
    transport.more = {"limits": (RATE,), "retry_after_ms": 5_250, "would_deny": (Reason.BUDGET_EXHAUSTED,)}
    said = cli("reserve", "acme", "llm")
    assert (said.code, said.err) == (1, "")
    assert said.out.splitlines() == [
        "denied: rate_limited",
        f"  no: 1 asked of rate calls user=ada: 0 of 10 requests left (10 used, 0 held, resets {ANCHOR})",
        "  retry after 5.25 s",
        "  limits that only observe would have said: budget_exhausted",
    ]


def test_the_waterfall_is_a_table(cli: CommandLine, transport: SentRequests) -> None:
    transport.more = {
        "limits": (BUDGET, CREDITS),
        "trace": (
            Step("customer", True, Reason.ALLOWED),
            Step("rate_limits", False, Reason.RATE_LIMITED, (RATE,)),
            Step("budgets", True, Reason.ALLOWED, (BUDGET, CREDITS)),
        ),
    }
    shown = cli("check", "acme", "llm", "--explain").out.splitlines()
    assert [line.split() for line in shown[1:]] == [
        ["waterfall"],
        ["step", "says", "limit", "room", "asked", "left", "of", "used", "held", "unit", "resets"],
        ["customer", "yes"],
        ["rate", "limits", "rate_limited", "calls", "user=ada", "no", "1", "0", "10", "10", "0", "requests", ANCHOR],
        ["budgets", "yes", "team", "over,", "but", "soft", "5", "2", "100", "90", "8", "credits"],
        ["credits", "ok", "5", "500", "500", "0", "0", "credits"],
    ]


def test_an_estimate_says_how_far_it_goes_even_where_it_is_a_no(cli: CommandLine, transport: SentRequests) -> None:
    transport.reason = Reason.CREDITS_EXHAUSTED
    transport.more = {"affordable": {"output_tokens": "812"}}
    said = cli("estimate", "acme", "llm", "--of", "output_tokens")
    assert (said.code, said.out) == (1, "denied: credits_exhausted\naffordable now: 812 output_tokens\n")


def test_a_check_tells_the_value_of_a_right(cli: CommandLine, transport: SentRequests) -> None:
    transport.more = {"value": "named engineer"}
    assert cli("check", "acme", "support").out == "yes: named engineer\n"
