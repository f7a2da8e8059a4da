"""Collect the statements that a program sends to `/sql`: `make sql-statements`.

It is a proxy on loopback in front of `/sql`. During a test run a client needs this line:

    neonConfig.fetchEndpoint = 'http://127.0.0.1:4444/sql'

Each text that was answered with 200 is added to the file of registered statements, without its
parameters. Entries that the file has already are not changed.
"""

import argparse
import http.client
import json
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.functions.sql.sql_http.statements import (
    StatementsError,
    digest,
    read_statements,
)
from lambda_pg_cdk.local.cloud import LocalCloud, NotRunningError
from lambda_pg_cdk.stage.loading import NoProjectError, load_stage
from lambda_pg_cdk.stage.schema import ConfigurationError

PORT = 4444
FILE = "sql/statements.json"
SECONDS = 35.0
"""Seconds that an answer may take; the API's limit is 30."""

_PER_HOP = {"connection", "content-length", "host", "keep-alive", "te", "transfer-encoding"}
"""Headers that are for one connection only."""


class Collection:
    """The file of registered statements, to which texts are added."""

    def __init__(self, file: Path, *, reads: bool) -> None:
        """Read the file, if it is there; `reads` marks new texts. Raises StatementsError."""
        self._file, self._reads = file, reads
        self._lock = threading.Lock()
        text = file.read_text("utf-8") if file.exists() else "{}"
        self._known = read_statements(text, str(file))
        self._entries: dict[str, Any] = json.loads(text)
        self._seen: set[str] = set()

    def add(self, query: str) -> bool:
        """Add a text; tell whether it is new."""
        with self._lock:
            if query in self._seen or not query.strip() or self._known.allows(query):
                return False
            self._seen.add(query)
            self._entries[name_of(query)] = {"sql": query, "reads": True} if self._reads else query
            self._write()
            return True

    def _write(self) -> None:
        self._file.parent.mkdir(parents=True, exist_ok=True)
        partial = self._file.with_name(f"{self._file.name}.partial")
        partial.write_text(json.dumps(self._entries, indent=2, ensure_ascii=False) + "\n", "utf-8")
        partial.replace(self._file)


def name_of(query: str) -> str:
    """Name a text by its first word and the beginning of its hash."""
    word = "".join(each for each in query.split(maxsplit=1)[0].lower() if each.isalnum())
    return f"{word or 'statement'}-{digest(query)[:8]}"


def texts_of(body: bytes) -> Iterator[str]:
    """Yield the texts of a request, a single statement's or a batch's."""
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return
    document = document if isinstance(document, dict) else {}
    queries = document.get("queries", [document])
    for each in queries if isinstance(queries, list) else ():
        if isinstance(each, dict) and isinstance(each.get("query"), str):
            yield each["query"]


class Answer(NamedTuple):
    """What the API has answered."""

    status: int
    headers: Sequence[tuple[str, str]]
    body: bytes


def passed_on(to: SplitResult, method: str, headers: Mapping[str, str], body: bytes) -> Answer:
    """Send a request to the API. Raises OSError, and HTTPException."""
    kinds = {"http": http.client.HTTPConnection, "https": http.client.HTTPSConnection}
    kept = {name: each for name, each in headers.items() if name.lower() not in _PER_HOP}
    with closing(kinds[to.scheme](to.netloc, timeout=SECONDS)) as connection:
        connection.request(method, to.path, body, kept)
        found = connection.getresponse()
        return Answer(found.status, found.getheaders(), found.read())


def server(to: str, collection: Collection, port: int) -> ThreadingHTTPServer:
    """Return a server that passes requests on to a URL and collects what succeeds."""
    target = urlsplit(to)

    class Handler(BaseHTTPRequestHandler):
        """Serves one connection."""

        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            """Pass a request on, and return its answer."""
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            try:
                answer = passed_on(target, self.command, dict(self.headers), body)
            except (OSError, http.client.HTTPException) as error:
                self._send(
                    Answer(
                        502, (), json.dumps({"message": f"no answer from {to}: {error}"}).encode()
                    )
                )
                return
            if answer.status == 200 and self.command == "POST":
                for query in texts_of(body):
                    if collection.add(query):
                        print(f"+ {name_of(query)}", flush=True)
            self._send(answer)

        do_OPTIONS = do_POST  # noqa: N815 - the name that http.server asks for

        def _send(self, answer: Answer) -> None:
            self.send_response_only(answer.status)
            for name, value in answer.headers:
                if name.lower() not in _PER_HOP:
                    self.send_header(name, value)
            self.send_header("content-length", str(len(answer.body)))
            self.end_headers()
            self.wfile.write(answer.body)

        def log_message(self, *_: object) -> None:
            """Log nothing: headers have keys."""

    return ThreadingHTTPServer(("127.0.0.1", port), Handler)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line until Ctrl-C; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m lambda_pg_cdk.tools.sql_statements")
    parser.add_argument("--to", help="URL of /sql (default: the local cloud's)")
    parser.add_argument(
        "--file",
        type=Path,
        help=f"file to add to (default: sql.statements of the stage local, or {FILE})",
    )
    parser.add_argument(
        "--port", type=int, default=PORT, help="port to listen on (default: %(default)s)"
    )
    parser.add_argument(
        "--reads",
        action="store_true",
        help="mark new statements as reads, which are retried: use a key of the level reader only",
    )
    chosen = parser.parse_args(arguments)
    try:
        to = chosen.to or f"{LocalCloud().url}/sql"
        file = chosen.file or PROJECT / (load_stage("local").sql.statements or FILE)
        listening = server(to, Collection(file, reads=chosen.reads), chosen.port)
    except (
        *(ConfigurationError, NoProjectError, NotRunningError),
        *(StatementsError, OSError),
    ) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"Requests to http://127.0.0.1:{listening.server_address[1]}/sql go to {to}.")
    print(
        f"Their statements are added to {file}. Run your tests; Ctrl-C ends the proxy.", flush=True
    )
    with listening:
        try:
            listening.serve_forever()
        except KeyboardInterrupt:
            print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
