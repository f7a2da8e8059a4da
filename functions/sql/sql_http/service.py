"""One request from its event to its response."""

from collections.abc import Callable, Mapping
from typing import Any

import psycopg
from lambda_pg import Database
from lambda_pg.text import Limits, Result, Statement

from . import kinds
from .answers import (
    ALLOW,
    Response,
    accepts_gzip,
    add_cors,
    cors,
    echo,
    packed,
    preflight,
    respond,
)
from .callers import Caller
from .connection_string import FORM, ConnectionString, is_allowed, parse
from .errors import LIMIT, Failure, RequestError, encode, failure_of
from .keys import Keys
from .record import Record
from .request import (
    CONNECTION_STRING,
    Modes,
    Request,
    headers_of,
    read_body,
    read_modes,
    read_request,
)
from .results import bytes_of_names, render
from .settings import SqlSettings
from .statements import Registered
from .tokens import caller_of_token, verified_claims

REFUSED = (
    "the key of the connection string is not valid: it is unknown, revoked or expired, or its"
    " secret is wrong"
)
"""One message for all four, so that it shows nobody which ids exist."""

FOREIGN_HOST = (
    "the host of the connection string is not one of this stage: use the DATABASE_URL that `make"
    " sql-key` printed, or add the host to sql.hosts"
)
FOREIGN_DATABASE = (
    "the database of the connection string is not the stage's: use the DATABASE_URL that `make"
    " sql-key` printed"
)
UNREGISTERED = (
    "the statement is not registered for this caller: its text must be exactly that of a registered"
    " statement (docs/operations.md)"
)

TYPES_LIMITS = Limits(rows=10_000, bytes=1_000_000)
"""Limits of the answer that describes the types of fields."""


NAMES = 4
"""How often the limit of bytes the columns' names may take in rows that are objects. Each row
repeats them: without a bound, 5 MB of NULLs became an answer of 90 MB."""


Work = tuple[Request, Modes, Caller]
"""What one request asks of the database, and for whom."""


class Service:
    """`POST /sql` of one environment."""

    def __init__(
        self, settings: SqlSettings, keys: Keys, open_role: Callable[[str], Database[Any]]
    ) -> None:
        """Take the function's settings, the keys, and what makes a role's database."""
        self._settings = settings
        self._keys = keys
        self._open_role = open_role
        self._roles: dict[str, Callable[[Work, object], list[Result]]] = {}
        self._types: dict[int, kinds.Type] = {}

    def answer(self, event: Mapping[str, Any], context: object) -> Response:
        """Answer a request, whatever it holds, and log one line."""
        method = event["requestContext"]["http"]["method"]
        headers = headers_of(event)
        shared = cors(headers.get("origin"), self._settings.origins)
        if method == "OPTIONS":
            return preflight(shared)
        record = Record(getattr(context, "aws_request_id", None))
        try:
            _require_post(method)
            response = self._serve(event, headers, context, record)
        except Exception as error:  # noqa: BLE001 - each one is answered, and logged
            response = _failed(error, record)
        if shared:
            add_cors(response, shared)
        print(record.line())
        return response

    def _serve(
        self, event: Mapping[str, Any], headers: Mapping[str, str], context: object, record: Record
    ) -> Response:
        modes = read_modes(headers)
        caller = self._caller(event, self._target(event, headers))
        record.key = caller.key
        body = read_body(event, caller.limits.request_bytes)
        request = read_request(body, arrays=modes.arrays, max_statements=caller.limits.statements)
        texts = [query for query, _ in request.statements]
        record.note_statements(texts)
        _require_registered(caller, texts)
        results = self._run((request, modes, caller), context)
        record.rows = sum([len(result.rows) for result in results])
        _require_short_names(request, results, NAMES * caller.limits.bytes)
        response = respond(200, self._body(request, modes, results), _echo(request, modes))
        response = packed(
            response,
            accepted=self._settings.gzip and accepts_gzip(headers.get("accept-encoding", "")),
            max_bytes=caller.limits.bytes,
        )
        record.bytes = len(response["body"])
        return response

    def _target(self, event: Mapping[str, Any], headers: Mapping[str, str]) -> ConnectionString:
        """Return the connection string, if its host is one of the stage's."""
        text = headers.get(CONNECTION_STRING)
        if text is None:
            raise RequestError(FORM)
        target = parse(text)
        domain = event["requestContext"]["domainName"].partition(":")[0].lower()
        if not is_allowed(target.host, domain, self._settings.hosts):
            raise RequestError(FOREIGN_HOST, "08001")
        return target

    def _caller(self, event: Mapping[str, Any], target: ConnectionString) -> Caller:
        """Return who calls, by a verified token or by a key."""
        if verified_claims(event) is not None:
            caller = caller_of_token(event, self._settings.rules)
        else:
            found = self._keys.find(target.user, target.password or "")
            if found is None:
                raise RequestError(REFUSED, "28P01")
            caller = found
        if target.database not in self._settings.databases:
            raise RequestError(FOREIGN_DATABASE, "3D000")
        return caller

    def _run(self, work: Work, context: object) -> list[Result]:
        """Run the statements as the caller's role."""
        request, _, caller = work
        if not request.statements:
            return []
        role = caller.role
        run = self._roles.get(role)
        if run is None:
            run = self._roles[role] = self._bound(self._open_role(role))
        return run(work, context)

    def _bound(self, db: Database[Any]) -> Callable[[Work, object], list[Result]]:
        """Return what runs on a role's database, within the deadline of the invocation."""

        @db.bind_lambda_context
        def run(work: Work, _context: object) -> list[Result]:
            results = _in_one_flight(db, work, self._settings.rules.statements)
            if not work[1].raw:
                self._learn_types(db, results)
            return results

        return run

    def _learn_types(self, db: Database[Any], results: list[Result]) -> None:
        """Ask for types that are not known yet. The statements have been committed before."""
        oids = kinds.unknown(results, self._types)
        if not oids:
            return
        try:
            found = db.run_text([kinds.asking(oids)], limits=TYPES_LIMITS, idempotent=True)
        except psycopg.Error as error:
            message = "the statements were run and committed, but the types of the answer's fields"
            raise RequestError(f"{message} could not be read", "08007") from error
        self._types |= kinds.read_types(found[0])

    def _body(self, request: Request, modes: Modes, results: list[Result]) -> str:
        texts = [
            render(result, arrays=arrays, raw=modes.raw, known=self._types)
            for arrays, result in zip(request.arrays, results, strict=True)
        ]
        return f'{{"results":[{",".join(texts)}]}}' if request.is_batch else texts[0]


def _require_post(method: str) -> None:
    if method != "POST":
        raise RequestError(f"the method is {method}; must be POST", status=405)


def _in_one_flight(db: Database[Any], work: Work, registered: Registered) -> list[Result]:
    request, modes, caller = work
    batch = request.is_batch
    return db.run_text(
        request.statements,
        limits=Limits(caller.limits.rows, caller.limits.bytes),
        claims=caller.claims,
        isolation_level=modes.isolation_level if batch else None,
        read_only=True if batch and modes.read_only else None,
        deferrable=True if batch and modes.deferrable else None,
        idempotent=_may_retry(caller, request.statements, registered),
    )


def _may_retry(caller: Caller, statements: list[Statement], registered: Registered) -> bool:
    """Tell whether a lost call may run twice; `registered` are all statements of the stage."""
    return caller.retries or registered.reads_all(query for query, _ in statements)


def _require_registered(caller: Caller, texts: list[str]) -> None:
    registered = caller.statements
    if registered is not None and not all(map(registered.allows, texts)):
        raise RequestError(UNREGISTERED, "42501")


def _require_short_names(request: Request, results: list[Result], most: int) -> None:
    if all(request.arrays):
        return
    pairs = zip(request.arrays, results, strict=True)
    size = sum(bytes_of_names(result) for arrays, result in pairs if not arrays)
    if size > most:
        message = f"the columns' names would take {size} bytes; at most {most} are allowed"
        hint = "ask for rows that are arrays. The statements were run and committed"
        raise RequestError(f"{message}: {hint}", LIMIT, 507)


def _echo(request: Request, modes: Modes) -> dict[str, str]:
    return echo(modes) if request.is_batch else {}


def _failed(error: Exception, record: Record) -> Response:
    failure: Failure = failure_of(error)
    record.note_failure(failure.status, failure.body["code"])
    if failure.status in {500, 503}:
        record.note_reason(error)
    headers = {"Allow": ALLOW} if failure.status == 405 else {}
    if failure.retry_after is not None:
        headers["Retry-After"] = str(failure.retry_after)
    return respond(failure.status, encode(failure.body), headers)
