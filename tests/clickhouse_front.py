"""A ClickHouse server as far as clickhouse-connect needs one: the embedded engine behind ClickHouse's HTTP interface.

python clickhouse_front.py FOLDER PORT. The engine and its answers are real; users, sessions and progress are not there.
"""

import re
import sys
import tempfile
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qsl, urlsplit

import chdb

_INSERT = re.compile(rb"(INSERT INTO [^\n]*) FORMAT (\w+)\s*\n(.*)", re.DOTALL)
#: Parameters of the HTTP interface itself; all others are settings.
_TRANSPORT = {"query", "database", "query_id", "session_id", "default_format", "wait_end_of_query", "compress"}
_LOCK = threading.Lock()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    folder = ""

    def do_GET(self) -> None:
        self._reply(200, b"Ok.\n")

    def do_POST(self) -> None:
        given = dict(parse_qsl(urlsplit(self.path).query))
        length = self.headers.get("Content-Length")
        body = self._chunks() if length is None else self.rfile.read(int(length))
        try:
            self._reply(200, self._run(given, body))
        except Exception as error:  # noqa: BLE001 - the engine raises bare exceptions; the client is told, as a server does
            code = re.search(r"Code: (\d+)", str(error))
            self._reply(500, str(error).encode(), {"X-ClickHouse-Exception-Code": code[1] if code else "1000"})

    def _run(self, given: dict[str, str], body: bytes) -> bytes:
        params = {name[6:]: given.pop(name) for name in list(given) if name.startswith("param_")}
        with _LOCK, tempfile.NamedTemporaryFile() as data:
            connection = chdb.connect(self.folder)
            try:
                for name, value in sorted(given.items(), key=lambda item: item[0] == "readonly"):
                    if name not in _TRANSPORT:
                        connection.query(f"SET {name} = '{value}'")
                if insert := _INSERT.fullmatch(body):
                    data.write(insert[3])
                    data.flush()
                    connection.query(f"{insert[1].decode()} FROM INFILE '{data.name}' FORMAT {insert[2].decode()}")
                    return b""
                form = given.get("default_format", "TabSeparated")
                result = connection.query(given.get("query", "") + body.decode(), form, params=params)
                return bytes(result.bytes() or b"")
            finally:
                connection.close()

    def _chunks(self) -> bytes:
        found = b""
        while size := int(self._line(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _line(self) -> bytes:
        if line := self.rfile.readline():
            return line
        raise ConnectionResetError("the client has gone")

    def _reply(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), "X-ClickHouse-Summary": "{}", **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Front(ThreadingHTTPServer):
    def handle_error(self, request: object, client_address: object) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed is no news
            super().handle_error(request, client_address)  # type: ignore[arg-type]


if __name__ == "__main__":
    Handler.folder = sys.argv[1]
    held_open = chdb.connect(Handler.folder)
    Front(("127.0.0.1", int(sys.argv[2])), Handler).serve_forever()
