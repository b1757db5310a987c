"""A broker that lets in whom it knows, and lets them do what they were allowed: SCRAM over TLS on one listener, client
certificates on another. The plain listener belongs to the administrator (User:ANONYMOUS is a super user).
"""

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

from confluent_kafka.admin import AdminClient, ScramCredentialInfo, ScramMechanism, UserScramCredentialUpsertion

from sink_world import free_port
from tallygate.connectors.kafka_local import LocalKafka

PASSPHRASE: Final = "open-sesame"
_MECHANISMS: Final = {
    "SCRAM-SHA-256": ScramMechanism.SCRAM_SHA_256,
    "SCRAM-SHA-512": ScramMechanism.SCRAM_SHA_512,
}


class SecuredKafka:
    def __init__(self, kafka: LocalKafka, folder: Path, sasl_port: int, ssl_port: int) -> None:
        self.kafka = kafka
        self.plain = kafka.bootstrap
        self.sasl = f"127.0.0.1:{sasl_port}"
        self.mtls = f"127.0.0.1:{ssl_port}"
        self.admin = AdminClient({"bootstrap.servers": kafka.bootstrap, "log_level": 0})
        self._folder = folder

    def add_user(self, name: str, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
        """librdkafka's options for a user that the broker knows."""
        info = ScramCredentialInfo(_MECHANISMS[mechanism], 4096)
        upsertion = UserScramCredentialUpsertion(name, info, password_of(name).encode())
        for done in self.admin.alter_user_scram_credentials([upsertion]).values():
            done.result()
        return self.user(name, mechanism)

    def user(self, name: str, mechanism: str = "SCRAM-SHA-512") -> dict[str, str]:
        own = {"sasl.mechanism": mechanism, "sasl.username": name, "sasl.password": password_of(name)}
        return {**self.no_certificate(), "security.protocol": "SASL_SSL", **own}

    def certificate(self, name: str) -> dict[str, str]:
        """librdkafka's options for a client with a certificate of its own, whose key has a passphrase."""
        certificate, key = _signed(self._folder, name, PASSPHRASE)
        return {
            **self.no_certificate(),
            "ssl.certificate.location": str(certificate),
            "ssl.key.location": str(key),
            "ssl.key.password": PASSPHRASE,
        }

    def no_certificate(self) -> dict[str, str]:
        return {"security.protocol": "SSL", "ssl.ca.location": str(self._folder / "ca.pem")}


def password_of(name: str) -> str:
    return f"{name}'s secret"


def as_file(folder: Path, options: dict[str, str]) -> str:
    """The path of a TALLYGATE_KAFKA_CONFIG_FILE with these options."""
    file = folder / f"kafka-{len(list(folder.glob('kafka-*.json')))}.json"
    file.write_text(json.dumps(options))
    return str(file)


@contextmanager
def secured_kafka(folder: Path) -> Iterator[SecuredKafka]:
    _openssl(folder, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=tallygate test",
             "-keyout", "ca.key", "-out", "ca.pem")  # fmt: skip
    certificate, key = _signed(folder, "broker", None)
    (folder / "broker.pem").write_text(key.read_text() + certificate.read_text())
    ports = free_port(), free_port()
    scram = "org.apache.kafka.common.security.scram.ScramLoginModule required;"
    properties = {
        "authorizer.class.name": "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
        "super.users": "User:ANONYMOUS",
        "sasl.enabled.mechanisms": ",".join(_MECHANISMS),
        "listener.name.sasl_ssl.scram-sha-512.sasl.jaas.config": scram,
        "listener.name.sasl_ssl.scram-sha-256.sasl.jaas.config": scram,
        "ssl.keystore.type": "PEM",
        "ssl.keystore.location": str(folder / "broker.pem"),
        "ssl.truststore.type": "PEM",
        "ssl.truststore.location": str(folder / "ca.pem"),
        "listener.name.ssl.ssl.client.auth": "required",
        "listener.name.ssl.ssl.principal.mapping.rules": "RULE:^CN=([a-z-]+)$/$1/",
    }
    listeners = [f"SASL_SSL://127.0.0.1:{ports[0]}", f"SSL://127.0.0.1:{ports[1]}"]
    with LocalKafka(listeners=listeners, properties=properties) as kafka:
        yield SecuredKafka(kafka, folder, *ports)


def missing_tools() -> str:
    return "" if shutil.which("openssl") else "certificates are made with openssl, which is missing"


def _signed(folder: Path, name: str, passphrase: str | None) -> tuple[Path, Path]:
    key, request, certificate = (folder / f"{name}.{end}" for end in ("key", "csr", "crt"))
    if not certificate.exists():
        locked = ["-passout", f"pass:{passphrase}"] if passphrase else ["-nodes"]
        _openssl(folder, "req", "-newkey", "rsa:2048", "-subj", f"/CN={name}", *locked, "-keyout", key, "-out", request)
        (folder / "names").write_text("subjectAltName=IP:127.0.0.1")
        _openssl(folder, "x509", "-req", "-in", request, "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
                 "-days", "2", "-extfile", "names", "-out", certificate)  # fmt: skip
    return certificate, key


def _openssl(folder: Path, *words: Any) -> None:
    subprocess.run(["openssl", *map(str, words)], cwd=folder, check=True, capture_output=True)
