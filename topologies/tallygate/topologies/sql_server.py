"""`tallygate sql`: questions about the sink's tables, and who answers them.

An embedded engine belongs to one process, so the running sink answers for it, over HTTP on its own machine: the
question is the body of a `POST /?format=…`. Where it listens, and a key that every question must carry, stand in a
file in the data folder that only the sink's own user can read. A ClickHouse server is asked directly.
"""

import contextlib
import hmac
import http.client
import json
import os
import secrets
import socketserver
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Final
from urllib.parse import parse_qs, urlsplit

from tallygate.connectors.clickhouse import Store, StoreError, is_embedded
from tallygate.connectors.clickhouse_questions import FORMATS, SECONDS_MAX, QuestionError, answer
from tallygate.topologies.settings import ENV_PREFIX, Settings, parse_address

LISTENING_FILE: Final = "sink-sql.json"

_QUESTION_BYTES_MAX: Final = 1 << 20
_AT_ONCE_MAX: Final = 2
_PATIENCE_SECONDS: Final = SECONDS_MAX + 30
_STOP_SECONDS: Final = 10.0


class SqlServerError(Exception):
    """The sink cannot listen; one clear line."""


class NobodyAnswers(QuestionError):
    """There is no sink, or no server, to ask; nothing is said about the question."""


class SqlServer:
    """Answers questions in threads of its own, from now until `close`; each with a client of its own."""

    def __init__(self, dsn: str, address: str, data_dir: Path, store: Store) -> None:
        self.dsn = dsn
        self.key = secrets.token_urlsafe(24)
        self.room = threading.BoundedSemaphore(_AT_ONCE_MAX)
        self.closing = False
        self._store = store
        self._file = data_dir / LISTENING_FILE
        self._server: _Http | None = None
        if not address:
            return
        try:
            host, port = parse_address(address)
            self._server = _Http((host, port), self)
            _write_private(self._file, {"address": f"{host}:{self._server.server_address[1]}", "key": self.key})
        except OSError as error:
            raise SqlServerError(
                f"the sink cannot listen for questions on {address} ({error.strerror}): set {ENV_PREFIX}SQL_ADDRESS "
                "(port 0 takes a free one, empty answers none)"
            ) from error
        self._thread = threading.Thread(target=self._server.serve_forever, name="sink-sql", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Takes no more questions, and ends those under way."""
        if self._server is None:
            return
        self.closing = True
        self._file.unlink(missing_ok=True)
        self._server.shutdown()
        self._thread.join()
        idle, deadline = 0, time.monotonic() + _STOP_SECONDS
        while idle < _AT_ONCE_MAX and time.monotonic() < deadline:
            with contextlib.suppress(StoreError):  # a question then ends by its own time limit
                self._store.cancel_questions()
            idle += self.room.acquire(timeout=0.1)
        self._server.server_close()


class _Http(socketserver.ThreadingTCPServer):  # http.server's own asks the DNS for the machine's name first
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 32

    def __init__(self, place: tuple[str, int], questions: SqlServer) -> None:
        self.questions = questions
        super().__init__(place, _Handler)


class _Handler(BaseHTTPRequestHandler):
    timeout = 10
    server: _Http

    def do_POST(self) -> None:
        questions = self.server.questions
        given = self.headers.get("Authorization", "")
        if not hmac.compare_digest(given.encode(), f"Bearer {questions.key}".encode()):
            return self._reply(403, b"the key is wrong")
        form = parse_qs(urlsplit(self.path).query).get("format", ["table"])[0]
        length = self.headers.get("Content-Length", "")
        if form not in FORMATS:
            return self._reply(400, f"there is no format {form!r}; there are {', '.join(FORMATS)}".encode())
        if not length.isdigit() or int(length) > _QUESTION_BYTES_MAX:
            return self._reply(413, b"a question may have 1 MiB")
        sql = self.rfile.read(int(length)).decode("utf-8", "replace")
        with questions.room:
            if questions.closing:
                return self._reply(503, b"the sink is stopping")
            try:
                body = answer(questions.dsn, sql, form)
            except (QuestionError, StoreError) as error:
                return self._reply(400, str(error).encode())
        return self._reply(200, body)

    def _reply(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Questions are nobody else's business."""


def ask(settings: Settings, sql: str, form: str = "table") -> str:
    """The answer to one question, as `form`: table, jsonl or csv.

    Raises `QuestionError`, one clear line; `NobodyAnswers` where it is not about the question.
    """
    if not is_embedded(settings.clickhouse):
        try:
            return answer(settings.clickhouse, sql, form).decode()
        except StoreError as error:
            raise NobodyAnswers(str(error)) from error
    try:
        listening = json.loads((settings.data_dir / LISTENING_FILE).read_text())
    except FileNotFoundError:
        raise NobodyAnswers(_nobody(settings.data_dir)) from None
    except (OSError, ValueError) as error:
        raise NobodyAnswers(f"{settings.data_dir / LISTENING_FILE} cannot be read: {error}") from error
    host, port = parse_address(listening["address"])
    connection = http.client.HTTPConnection(host, port, timeout=_PATIENCE_SECONDS)
    try:
        with contextlib.closing(connection):
            connection.request(
                "POST", f"/?format={form}", sql.encode(), {"Authorization": f"Bearer {listening['key']}"}
            )
            response = connection.getresponse()
            body = response.read().decode()
    except ConnectionRefusedError:
        raise NobodyAnswers(_nobody(settings.data_dir)) from None
    except (OSError, http.client.HTTPException) as error:
        raise NobodyAnswers(f"the sink at {listening['address']} broke off: {error}") from error
    if response.status != 200:
        raise (NobodyAnswers if response.status == HTTPStatus.SERVICE_UNAVAILABLE else QuestionError)(body)
    return body


def _nobody(data_dir: Path) -> str:
    return f"no sink is running on {data_dir}: start one with `tallygate sink` or `tallygate up`"


def _write_private(path: Path, content: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump(content, file)
