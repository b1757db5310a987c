"""The demo's calls: what the traces say, and what the rule adds."""

from tallygate.schemas.instants import parse_instant
from tallygate.schemas.partitions import partition_of
from tallygate.topologies.demo_cluster import PARTITIONS
from tallygate.topologies.demo_trace import (
    CUSTOMERS,
    TRACES,
    Totals,
    data_path,
    of_trace,
    read_calls,
    read_rows,
    trace_totals,
    who_called,
)

NOW = parse_instant("2026-11-22T12:00:00Z")


def test_the_traces_hold_what_was_published() -> None:
    assert trace_totals() == Totals(28_185, 40_421_844, 4_334_561)
    assert {trace: len(list(read_rows(trace))) for trace in TRACES} == {"conv": 19_366, "code": 8_819}
    assert next(read_rows("code")) == (parse_instant("2023-11-16T18:17:03.979Z"), 4808, 10)


def test_calls_are_the_rows_with_who_and_when() -> None:
    calls = read_calls(NOW)
    assert Totals(len(calls), sum(c.input_tokens for c in calls), sum(c.output_tokens for c in calls)) == trace_totals()
    assert calls[-1].at == NOW
    assert [call.at for call in calls] == sorted(call.at for call in calls)
    assert len({call.id for call in calls}) == len(calls)
    first, last = of_trace(calls, "code")[0], of_trace(calls, "code")[-1]
    assert last.at - first.at == parse_instant("2023-11-16T19:14:19.928Z") - parse_instant("2023-11-16T18:17:03.979Z")


def test_the_rule_does_not_change() -> None:
    assert who_called("conv", 0) == (
        "acme",
        {"team": "sales", "user": "hana", "agent": "assistant", "model": "chat-small"},
    )
    assert who_called("code", 8_818) == (
        "initech",
        {"team": "platform", "user": "olga", "agent": "autocomplete", "model": "code"},
    )


def test_everyone_calls_and_every_partition_works() -> None:
    calls = read_calls(NOW)
    assert {call.customer for call in calls} == set(CUSTOMERS)
    assert len({partition_of(customer, PARTITIONS) for customer in CUSTOMERS}) == PARTITIONS
    assert {call.dimensions["model"] for call in of_trace(calls, "code")} == {"code"}
    assert {call.dimensions["model"] for call in of_trace(calls, "conv")} == {"chat-small", "chat-large"}
    assert {call.dimensions["agent"] for call in calls} == {"autocomplete", "assistant", "summarizer"}


def test_the_data_names_its_source_and_licence() -> None:
    with data_path("ATTRIBUTION.md") as path:
        text = path.read_text()
    assert "AzurePublicDataset" in text
    assert "CC BY 4.0" in text
    assert "Splitwise" in text
