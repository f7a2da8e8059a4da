"""pytest fixtures for handlers that use the layer; pytest finds them where lambda-pg is installed.

Elsewhere a conftest.py names them: `pytest_plugins = ["lambda_pg.testing"]`. A test that names
`lambda_pg_environment` runs its handler against a real PostgreSQL, in strict mode: what would pin
or leak through a pooler is refused here, too.

PYTEST_DONT_REWRITE: it has no assert, so a conftest.py may import from it.
"""

import os
import uuid
from collections.abc import Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import psycopg
import pytest

from lambda_pg import ConfigurationError, Database, _secrets
from lambda_pg._address import is_loopback
from lambda_pg._clock import monotonic
from lambda_pg._throwaway import ServerError, running
from lambda_pg._url import Url

with suppress(ImportError):
    import freezegun

    # psycopg ends a statement at its deadline by time.monotonic(), which stands still otherwise.
    freezegun.configure(extend_ignore_list=["psycopg"])

TLS: Final = (
    "Add ?sslmode=disable to the URL for a server without TLS, ?sslmode=require for one whose "
    "certificate cannot be verified"
)

TOO_EARLY: Final = (
    "The handler's module reads its settings when it is imported. Import it inside the test, which "
    "names the fixture lambda_pg_environment."
)
"""What to do where a test file imports a handler at its top."""

ALLOWED: Final = (
    "LAMBDA_PG_STRICT",
    "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT",
    "LAMBDA_PG_ALLOW_UNVERIFIED_TLS",
)


@dataclass(frozen=True)
class Server:
    """A PostgreSQL server for tests; `url` is its superuser's, or LAMBDA_PG_TEST_URL."""

    url: str = field(repr=False)


@dataclass(frozen=True)
class LambdaContext:
    """The context that Lambda passes to a handler, for an invocation of `seconds` from now."""

    seconds: float = 30.0
    aws_request_id: str = field(default_factory=lambda: str(uuid.uuid4()))
    function_name: str = "function-under-test"
    function_version: str = "$LATEST"
    memory_limit_in_mb: str = "512"
    invoked_function_arn: str = (
        "arn:aws:lambda:eu-central-1:123456789012:function:function-under-test"
    )
    log_group_name: str = "/aws/lambda/function-under-test"
    log_stream_name: str = "2026/01/01/[$LATEST]0"
    identity: None = None
    client_context: None = None
    tenant_id: None = None
    _began: float = field(default_factory=monotonic, repr=False)

    def get_remaining_time_in_millis(self) -> int:
        """Return the milliseconds that are left; they pass also in a test that freezes time."""
        return max(0, int((self._began + self.seconds - monotonic()) * 1000))


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    """Explain a test file whose import fails for lack of settings."""
    report = yield
    if report.failed and "lambda_pg._errors.ConfigurationError" in str(report.longrepr):
        report.sections.append(("lambda_pg", TOO_EARLY))
    return report


@pytest.fixture(scope="session")
def lambda_pg_server() -> Iterator[Server]:
    """A PostgreSQL server for the session: LAMBDA_PG_TEST_URL's, or a temporary one.

    The latter is started from the binaries of this machine and listens on 127.0.0.1 only.
    """
    url = os.environ.get("LAMBDA_PG_TEST_URL")
    if url:
        _require_answer(url)
        yield Server(url)
        return
    try:
        with running() as url:
            yield Server(url)
    except ServerError as error:
        pytest.fail(f"lambda_pg.testing: {error}", pytrace=False)


@pytest.fixture
def lambda_pg_environment(lambda_pg_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set the variables that a handler's module reads when the test imports it.

    DATABASE_URL and DIRECT_URL name the server, the profile is `pgbouncer`, strict mode is on. The
    shell's settings for the layer and for libpq are removed. No secret is fetched from AWS.
    """
    monkeypatch.setattr(_secrets, "stays_here", True)
    _set_environment(monkeypatch, lambda_pg_server.url)


def _set_environment(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    try:
        url = Url.parse(text)
    except ValueError as error:
        pytest.fail(f"LAMBDA_PG_TEST_URL {error}", pytrace=False)
    for name in list(os.environ):
        if name.startswith(("PG", "LAMBDA_PG_")):
            monkeypatch.delenv(name)
    for name in ("DATABASE_URL", "DIRECT_URL"):
        monkeypatch.setenv(name, text)
    if (url.sslmode or ("disable" if is_loopback(url.host or "") else None)) == "disable":
        monkeypatch.setenv("PGSSLMODE", "disable")  # for a secret of the test's, too
    for name in ALLOWED:
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("LAMBDA_PG_PROFILE", "pgbouncer")


def _require_answer(url: str) -> None:
    """Fail if the layer cannot connect: every test would, with less about the URL."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _set_environment(monkeypatch, url)
        try:
            Database.from_env().execute("SELECT 1")
        except (ConfigurationError, psycopg.Error) as error:
            pytest.fail(f"LAMBDA_PG_TEST_URL: {error}. {TLS}", pytrace=False)


@pytest.fixture
def lambda_context(request: pytest.FixtureRequest) -> LambdaContext:
    """The context of an invocation that may take 30 s, or the seconds of an indirect parameter."""
    return LambdaContext(getattr(request, "param", LambdaContext.seconds))
