"""Kafka's security options, under librdkafka's names, for every client of ours.

Two libraries talk to Kafka here: librdkafka, and aiokafka for the journal's batches. So exactly those options are taken
that both understand. An option that one of them would ignore, or that librdkafka would ignore beside the others (a
password without SASL goes unused, in silence, and everything in clear), is refused with one line.
"""

import os
import re
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient

PROTOCOL: Final = "security.protocol"
#: The broker knows who asks, and says no.
FORBIDDEN: Final = frozenset(
    {
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.GROUP_AUTHORIZATION_FAILED,
        KafkaError.CLUSTER_AUTHORIZATION_FAILED,
        KafkaError.TRANSACTIONAL_ID_AUTHORIZATION_FAILED,
    }
)
_GRANT: Final = "; `tallygate acls` shows what each process must be allowed"

_PROTOCOLS: Final = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")
_MECHANISMS: Final = ("SCRAM-SHA-512", "SCRAM-SHA-256", "PLAIN")

_SASL: Final = ("sasl.mechanism", "sasl.mechanisms", "sasl.username", "sasl.password")
_FILES: Final = ("ssl.ca.location", "ssl.certificate.location", "ssl.key.location")
_VERIFY: Final = "enable.ssl.certificate.verification"
_HOST_NAMES: Final = "ssl.endpoint.identification.algorithm"
_SSL: Final = (*_FILES, "ssl.key.password", _HOST_NAMES, _VERIFY)
_SECURITY: Final = ("ssl.", "sasl.", "enable.ssl.", "enable.sasl.", "https.")

#: What Tallygate's promises rest on; clients set these themselves.
_OWN: Final = (
    "acks",
    "auto.offset.reset",
    "enable.auto.commit",
    "enable.auto.offset.store",
    "enable.idempotence",
    "enable.partition.eof",
    "group.instance.id",
    "group.protocol",
    "isolation.level",
    "metadata.broker.list",
    "partition.assignment.strategy",
    "partitioner",
    "request.required.acks",
    "transactional.id",
)


class Heard:
    """An `error_cb`: what librdkafka said last of its brokers; `refused` is not empty once one does not let it in."""

    def __init__(self) -> None:
        self.last = ""
        self.refused = ""

    def __call__(self, error: KafkaError) -> None:
        if error.code() == KafkaError._ALL_BROKERS_DOWN:  # says less than the error of the broker itself
            return
        self.last = error.str()
        if advice := _advice(error):
            self.refused = f"{self.last}: {advice}"


def _advice(error: KafkaError) -> str:
    """What to do where trying again is of no use; empty otherwise: a handshake also fails when a broker just ends."""
    said = error.str()
    if error.code() == KafkaError._AUTHENTICATION:
        return "are sasl.username, sasl.password and sasl.mechanism right?"
    if "certificate verify failed" in said:
        return "is the broker's certificate signed by what ssl.ca.location holds, and made for this address?"
    if re.search(r"alert .*(certificate|unknown ca)", said):
        return "it wants another client certificate, or one at all: ssl.certificate.location and ssl.key.location"
    return ""


def said_of(error: KafkaError) -> str:
    """What the broker said, and what to do where it is a permission that is missing."""
    return str(error.str()) + (_GRANT if error.code() in FORBIDDEN else "")


def mechanism_of(options: Mapping[str, str]) -> str:
    return options.get("sasl.mechanism") or options.get("sasl.mechanisms", "")


def protocol_of(options: Mapping[str, str]) -> str:
    return options.get(PROTOCOL, "PLAINTEXT").upper()


def wrong_options(options: Mapping[str, str]) -> str:
    """One line on what is wrong with librdkafka options, never with a secret in it; empty where all is well."""
    for name in options:
        if name in _OWN:
            return f"{name!r} is set by Tallygate itself: leave it out"
        if name.startswith(_SECURITY) and name not in (*_SASL, *_SSL):
            known = ", ".join((PROTOCOL, *_SASL[1:], *_SSL))
            return f"{name!r} is not carried through every client: there are {known}"
    return contradiction(options) or _incomplete(options) or _unreadable(options) or _what_librdkafka_says(options)


def ssl_context(options: Mapping[str, str]) -> ssl.SSLContext:
    """The same TLS for a client in Python; the options are right."""
    place = options.get("ssl.ca.location")
    folder = place if place and Path(place).is_dir() else None
    context = ssl.create_default_context(cafile=None if folder else place, capath=folder)
    if certificate := options.get("ssl.certificate.location"):
        # Without a password, Python would ask the terminal for one.
        context.load_cert_chain(certificate, options["ssl.key.location"], options.get("ssl.key.password", ""))
    if _is_off(options, _VERIFY):
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif _is_off(options, _HOST_NAMES):
        context.check_hostname = False
    return context


def contradiction(options: Mapping[str, str]) -> str:
    """One line on which options do not go together; empty where all do."""
    protocol = protocol_of(options)
    if protocol not in _PROTOCOLS:
        return f"{PROTOCOL} is {protocol[:40]!r}: there are {', '.join(_PROTOCOLS)}"
    for names, part, meant in ((_SASL, "SASL", "SASL_SSL"), (_SSL, "SSL", "SSL or SASL_SSL")):
        given = [name for name in names if name in options]
        if given and part not in protocol.split("_"):
            return f"{given[0]} is set and {PROTOCOL} is {protocol}, which does not use it: set that to {meant}"
    if len({options[name] for name in _SASL[:2] if name in options}) > 1:
        return "sasl.mechanism and sasl.mechanisms differ: leave one out"
    if ("ssl.certificate.location" in options) != ("ssl.key.location" in options):
        return "ssl.certificate.location and ssl.key.location go together: set both (PEM files)"
    return ""


def _incomplete(options: Mapping[str, str]) -> str:
    protocol = protocol_of(options)
    if not protocol.startswith("SASL"):
        return ""
    if mechanism_of(options) not in _MECHANISMS:
        return f"sasl.mechanisms is {mechanism_of(options)[:40]!r}: there are {', '.join(_MECHANISMS)}"
    missing = [name for name in _SASL[2:] if not options.get(name)]
    return f"{missing[0]} is missing, and {PROTOCOL} is {protocol}" if missing else ""


def _unreadable(options: Mapping[str, str]) -> str:
    for name in _FILES:
        if name not in options:
            continue
        if not Path(options[name]).exists():
            return f"{name}: there is no file {options[name]!r}"
        if not os.access(options[name], os.R_OK):
            return f"{name}: {options[name]!r} may not be read by this user"
    return ""


def _what_librdkafka_says(options: Mapping[str, str]) -> str:
    """It knows all its options, and reads certificates and keys when a client is made."""
    try:
        AdminClient({**options, "log_level": "0"})
    except KafkaException as error:
        said = error.args[0].str().removeprefix("Failed to create admin client: ")
        if said.startswith("ssl.key.location failed"):
            return f"{said}: is ssl.key.password right, and is it the key of ssl.certificate.location?"
        return str(said)
    return ""


def _is_off(options: Mapping[str, str], name: str) -> bool:
    return options.get(name, "").lower() in ("false", "none", "0", "f")
