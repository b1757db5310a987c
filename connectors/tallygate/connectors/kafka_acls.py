"""Who may do what on Kafka: the least that each of Tallygate's processes needs, as rules of Kafka's authorizer.

Only the worker writes the journal. Only the sink writes what is relayed. A service reads its own answers and nothing
else. (In Kafka, who may read or write a topic may also describe it, and who may write any topic may produce
idempotently, so neither stands here.)
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from typing import Final, NamedTuple

from confluent_kafka import KafkaException
from confluent_kafka.admin import AclBinding, AclOperation, AclPermissionType, ResourcePatternType, ResourceType

from tallygate.connectors.kafka_admin import TIMEOUT_SECONDS, KafkaRefused, connect
from tallygate.schemas.topics import (
    ALERTS,
    AUDIT,
    CATALOG,
    DEAD_LETTERS,
    DECISIONS,
    GROUP_CLIENT_PREFIX,
    GROUP_READER,
    GROUP_SINK,
    JOURNAL,
    KEYS,
    POSTINGS,
    REPLIES_PREFIX,
    REQUESTS,
    USAGE,
    reply_topic,
)

#: The groups in which an analyst may read what is relayed.
GROUP_ANALYST_PREFIX: Final = "tallygate-analyst-"
#: The service whose name the command line asks under.
CLI_SERVICE: Final = "cli"
#: The same of the gateway, and the group name under which it reads.
GATEWAY_SERVICE: Final = "gateway"
GROUP_GATEWAY: Final = "tallygate-gateway"
_EVERY_TOPIC: Final = "tallygate."
_ON_EVERY_TOPIC: Final = ("CREATE", "DESCRIBE", "DESCRIBE_CONFIGS")

ROLES: Final = ("worker", "sink", "gateway", "producer", "operator", "analyst")


class Rule(NamedTuple):
    """`principal` (`User:checkout`) may do `operation` on what is named so, or begins so."""

    principal: str
    operation: str
    resource: str
    name: str
    prefixed: bool = False


def rules_of(role: str, principal: str, worker_group: str, reply_topics: Iterable[str] = ()) -> list[Rule]:
    """What one of `ROLES` needs. `reply_topics`: the only ones that a worker answers on; empty: all of Tallygate's."""
    match role:
        case "worker":
            replies = sorted(reply_topics)
            return [
                *_on_topics(principal, "READ", USAGE, REQUESTS, JOURNAL, CATALOG),
                *_on_topics(principal, "WRITE", JOURNAL, DEAD_LETTERS, *replies),
                *([] if replies else [Rule(principal, "WRITE", "TOPIC", REPLIES_PREFIX, True)]),
                Rule(principal, "READ", "GROUP", worker_group),
            ]
        case "sink":
            return [
                *_on_topics(principal, "READ", JOURNAL, AUDIT),
                *_on_topics(principal, "WRITE", DECISIONS, POSTINGS, ALERTS),
                Rule(principal, "READ", "GROUP", GROUP_SINK),
            ]
        case "gateway":
            return [
                *service_rules(GATEWAY_SERVICE, principal),
                *_on_topics(principal, "WRITE", USAGE, CATALOG, KEYS, AUDIT),
                *_on_topics(principal, "READ", USAGE, CATALOG, KEYS, DECISIONS),
                *_on_topics(principal, "DESCRIBE", JOURNAL, DEAD_LETTERS),
                *(Rule(principal, "DESCRIBE", "GROUP", name) for name in (GROUP_GATEWAY, GROUP_READER, worker_group)),
            ]
        case "producer":
            return _on_topics(principal, "WRITE", USAGE)
        case "analyst":
            return [
                *_on_topics(principal, "READ", DECISIONS, POSTINGS, ALERTS),
                Rule(principal, "READ", "GROUP", GROUP_ANALYST_PREFIX, True),
            ]
        case "operator":
            return [
                *service_rules(CLI_SERVICE, principal),
                *_on_topics(principal, "WRITE", USAGE, CATALOG, DEAD_LETTERS, KEYS, AUDIT),
                *_on_topics(principal, "READ", USAGE, REQUESTS, JOURNAL, CATALOG, DEAD_LETTERS, KEYS, AUDIT),
                *(
                    Rule(principal, op, "TOPIC", _EVERY_TOPIC, True)
                    for op in ("CREATE", "DESCRIBE", "DESCRIBE_CONFIGS")
                ),
                *(Rule(principal, "DESCRIBE", "GROUP", name) for name in (worker_group, GROUP_SINK, GROUP_READER)),
            ]
        case _:
            raise AssertionError(role)


def service_rules(service: str, principal: str) -> list[Rule]:
    """What a service that asks under this name needs. Raises ValueError for a name that no service can have."""
    return [
        *_on_topics(principal, "WRITE", REQUESTS),
        *_on_topics(principal, "READ", reply_topic(service)),
        Rule(principal, "DESCRIBE", "GROUP", f"{GROUP_CLIENT_PREFIX}{service}"),
    ]


def as_commands(rules: Sequence[Rule], brokers: str) -> str:
    """The `kafka-acls.sh` commands that allow this, one a principal and resource."""
    grouped: dict[tuple[str, str, str, bool], list[str]] = {}
    for rule in rules:
        grouped.setdefault((rule.principal, rule.resource, rule.name, rule.prefixed), []).append(rule.operation)
    lines = []
    for (principal, resource, name, prefixed), operations in grouped.items():
        words = ["kafka-acls.sh", "--bootstrap-server", brokers, "--command-config", "admin.properties", "--add"]
        words += ["--allow-principal", principal]
        for operation in dict.fromkeys(operations):
            words += ["--operation", "".join(part.capitalize() for part in operation.split("_"))]
        words += [f"--{resource.lower()}", name]
        lines.append(shlex.join(words + (["--resource-pattern-type", "prefixed"] if prefixed else [])))
    return "\n".join(lines)


def apply_rules(
    admin_config: Mapping[str, str], rules: Sequence[Rule], timeout_seconds: float = TIMEOUT_SECONDS
) -> None:
    """Puts the rules in force, besides those that are. Twice is once. Raises KafkaUnreachable, KafkaRefused."""
    admin, _ = connect(admin_config, timeout_seconds)
    asked = admin.create_acls([_binding(rule) for rule in dict.fromkeys(rules)], request_timeout=timeout_seconds)
    for binding, future in asked.items():
        try:
            future.result()
        except KafkaException as error:
            raise KafkaRefused(
                f"{binding.principal} cannot be allowed to {binding.operation.name} {binding.name}: "
                f"{error.args[0].str()}; whoever runs this needs ALTER on a cluster that has an authorizer"
            ) from error


def _binding(rule: Rule) -> AclBinding:
    pattern = ResourcePatternType.PREFIXED if rule.prefixed else ResourcePatternType.LITERAL
    operation = AclOperation[rule.operation]
    resource = ResourceType[rule.resource]
    return AclBinding(resource, rule.name, pattern, rule.principal, "*", operation, AclPermissionType.ALLOW)


def _on_topics(principal: str, operation: str, *topics: str) -> list[Rule]:
    return [Rule(principal, operation, "TOPIC", topic) for topic in topics]
