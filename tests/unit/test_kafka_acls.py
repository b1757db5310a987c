"""The rules of access, as tables: who may do what, and nobody more."""

import shlex

import pytest

from tallygate.connectors.kafka_acls import ROLES, Rule, as_commands, rules_of, service_rules
from tallygate.schemas import topics


def everybody() -> list[Rule]:
    rules = [rule for role in ROLES for rule in rules_of(role, role, "tallygate-workers")]
    return rules + service_rules("checkout", "checkout")


@pytest.mark.parametrize(
    ("operation", "topic", "who"),
    [
        ("WRITE", topics.JOURNAL, {"worker"}),
        ("READ", topics.JOURNAL, {"worker", "sink", "operator"}),
        ("WRITE", topics.DECISIONS, {"sink"}),
        ("WRITE", topics.POSTINGS, {"sink"}),
        ("WRITE", topics.ALERTS, {"sink"}),
        ("WRITE", topics.CATALOG, {"operator", "gateway"}),
        ("WRITE", topics.KEYS, {"operator", "gateway"}),
        ("READ", topics.KEYS, {"operator", "gateway"}),
        ("READ", topics.AUDIT, {"operator", "sink"}),
        ("WRITE", topics.DEAD_LETTERS, {"worker", "operator"}),
        ("READ", topics.DEAD_LETTERS, {"operator"}),
        ("WRITE", topics.USAGE, {"producer", "operator", "gateway"}),
        ("READ", topics.USAGE, {"worker", "operator", "gateway"}),
        ("WRITE", topics.REQUESTS, {"operator", "gateway", "checkout"}),
        ("READ", topics.reply_topic("checkout"), {"checkout"}),
        ("READ", topics.reply_topic("cli"), {"operator"}),
        ("WRITE", topics.reply_topic("checkout"), {"worker"}),
    ],
)
def test_who_may(operation: str, topic: str, who: set[str]) -> None:
    def covers(rule: Rule) -> bool:
        return topic.startswith(rule.name) if rule.prefixed else topic == rule.name

    rules = [rule for rule in everybody() if rule.resource == "TOPIC" and rule.operation == operation]
    assert {rule.principal for rule in rules if covers(rule)} == who


def test_nobody_may_alter_or_delete() -> None:
    assert {rule.operation for rule in everybody()} == {"READ", "WRITE", "CREATE", "DESCRIBE", "DESCRIBE_CONFIGS"}
    assert {rule.resource for rule in everybody()} == {"TOPIC", "GROUP"}


def test_an_allow_list_of_reply_topics_narrows_the_worker() -> None:
    only = topics.reply_topic("checkout")
    rules = rules_of("worker", "User:w", "g", [only])
    assert Rule("User:w", "WRITE", "TOPIC", only) in rules
    assert not any(rule.prefixed for rule in rules)


def test_commands_hold_any_principal() -> None:
    command = as_commands(service_rules("checkout", "User:CN=check out,O=Acme's"), "kafka:9092").splitlines()[0]
    words = shlex.split(command)
    assert words[:2] == ["kafka-acls.sh", "--bootstrap-server"]
    assert words[words.index("--allow-principal") + 1] == "User:CN=check out,O=Acme's"
    assert words[words.index("--operation") + 1] == "Write"
    everything = as_commands(rules_of("operator", "User:o", "g"), "kafka:9092")
    assert "--operation DescribeConfigs --topic tallygate. --resource-pattern-type prefixed" in everything
