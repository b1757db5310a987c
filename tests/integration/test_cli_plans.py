"""Plans, limits and long work from the command line, against a real `tallygate up` with the example catalog."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from command_line import CommandLine
from kafka_fixture import java_and_maven
from tallygate.topologies.catalog_example import example_files
from up_process import Up

pytestmark = [
    pytest.mark.skipif(not java_and_maven(), reason="`tallygate up` needs Java 17+ and Maven"),
    pytest.mark.timeout(300),
]


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory, _nothing_left_behind: None) -> Iterator[Up]:
    folder = tmp_path_factory.mktemp("up")
    running = Up(folder / "data", folder / "up.log")
    try:
        running.wait_for("Ctrl-C ends it.")
        yield running
    finally:
        if running.process.poll() is None:
            running.end()


@pytest.fixture
def cli(up: Up, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> CommandLine:
    monkeypatch.setenv("TALLYGATE_DATA_DIR", str(up.data_dir))
    monkeypatch.delenv("TALLYGATE_KAFKA_BROKERS", raising=False)
    line = CommandLine(monkeypatch, capfd)
    for name, text in example_files().items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert line("catalog", "apply", str(tmp_path)).code == 0
    return line


def test_a_customer_on_a_plan(cli: CommandLine) -> None:
    words = (
        "--add-on",
        "more-searches",
        "--override",
        "sso=true",
        "--override",
        "support=value:gold",
        "--id",
        "contract",
    )
    subscribed = cli("subscribe", "acme", "pro", *words)
    assert (subscribed.code, subscribed.out) == (
        0,
        "acme is on plan pro, with add-on more-searches, its own sso, its own support\n",
    )
    assert cli("subscribe", "acme", "gold").err.startswith("tallygate: plan_unknown: there is no plan 'gold'")
    assert cli("check", "acme", "sso").code == 0
    assert cli("check", "acme", "support").out == "yes: gold\n"
    owned = json.loads(cli("balance", "acme", "--json").out)
    assert {grant["id"]: grant["balance"] for grant in owned["grants"]} == {
        "pro:contract:trial": "500",
        "pro:contract:monthly": "2000",
    }
    # 1 000 and 500 searches are included, and credits pay for the rest: half a credit each.
    searched = json.loads(cli("check", "acme", "search", "-q", "searches=1502", "--explain", "--json").out)
    assert (searched["allowed"], searched["credits"]) == (True, "1")


def test_work_that_takes_what_it_can_get(cli: CommandLine) -> None:
    assert cli("grant", "wayne", "10", "--id", "g1").code == 0
    estimated = cli(
        "estimate", "wayne", "chat", "--of", "output_tokens", "-q", "input_tokens=1000", "-d", "model=small"
    )
    assert estimated.code == 0
    assert estimated.out.startswith("it would cost 0.015 credits; 10 can be spent\n")
    assert "affordable now: 166416 output_tokens\n" in estimated.out  # (10 - 0.015) / 60 * 1 000 000, whole ones
    words = ("-q", "output_tokens=400000", "-d", "model=small")
    assert cli("reserve", "wayne", "chat", *words).code == 1
    less = cli("reserve", "wayne", "chat", *words, "--at-least", "output_tokens=500", "--id", "h1")
    assert less.code == 0
    assert re.search(r"for .*166666 output_tokens", less.out)
    until = json.loads(cli("balance", "wayne", "--json").out)["holds"][0]["expires_at"]
    extended = json.loads(cli("extend", "wayne", "h1", "--ttl", "3600", "--json").out)
    assert extended["hold"]["expires_at"] > until
    assert cli("release", "wayne", "h1").code == 0
    ended = cli("extend", "wayne", "h1", "--ttl", "3600")
    assert (ended.code, ended.err.startswith("tallygate: hold_ended: ")) == (2, True)


def test_a_rate_limit_says_when_to_come_again(cli: CommandLine) -> None:
    cli("grant", "stark", "100")
    set_ = cli("rate-limit", "stark", "calls", "--limit", "1", "--per", "hour", "--burst", "2", "--scope", "user=*")
    assert set_.out == "rate limit calls of stark: 1 requests per hour, 2 at once for user=*\n"
    words = ("reserve", "stark", "chat", "--credits", "1", "-d")
    assert [cli(*words, f"user={user}").code for user in ("ada", "ada", "ada", "bob")] == [0, 0, 1, 0]
    denied = cli(*words, "user=ada").out
    assert denied.startswith("denied: rate_limited\n  no: 1 asked of rate calls user=ada: ")
    assert re.search(r"0 held, resets [-0-9T:.]+Z\)\n  retry after 3[0-9]{3}(\.[0-9]+)? s\n", denied)
    explained = cli(*words, "user=ada", "--explain")
    assert explained.code == 1
    assert re.search(r"rate limits +rate_limited +calls user=ada +no +1 ", explained.out)
    assert re.search(r"credits +yes +credits +ok +1 +97 +100 +0 +3 +credits", explained.out)


def test_ending_a_grant_and_a_period(cli: CommandLine) -> None:
    cli("grant", "hooli", "100", "--id", "promo", "--category", "promotional")
    cli("grant", "hooli", "100", "--id", "bought", "--rollover-max", "30", "--every", "P1M")
    assert cli("void-grant", "hooli", "promo").out == "ended grant promo: 100 credits were left; 100 can be spent\n"
    assert cli("void-grant", "hooli", "promo", "--id", "again").code == 2
    assert cli("reset", "hooli").out == "reset pool credits of hooli; 30 can be spent\n"
    assert cli("reset", "hooli", "--pool", "gpu").code == 2


def test_a_suspended_customer(cli: CommandLine) -> None:
    cli("grant", "globex", "100")
    assert cli("customer", "globex", "--suspend").out == "globex is suspended\n"
    denied = cli("reserve", "globex", "chat", "--credits", "1", "--explain")
    assert (denied.code, denied.out.splitlines()[0]) == (1, "denied: customer_suspended")
    assert re.search(r"customer +customer_suspended", denied.out)
    assert cli("customer", "globex", "--resume").out == "globex may go on\n"
    assert cli("reserve", "globex", "chat", "--credits", "1").code == 0


def test_a_limit_that_only_observes(cli: CommandLine) -> None:
    cli("grant", "initech", "100")
    cli("budget", "initech", "team", "--limit", "5", "--observe", "--threshold", "80")
    over = cli("reserve", "initech", "chat", "--credits", "6")
    assert over.code == 0
    assert "limits that only observe would have said: budget_exhausted" in over.out
