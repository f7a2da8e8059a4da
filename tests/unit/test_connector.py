"""What the settings and the secret together make of a connect, seen before anything is sent."""

from pathlib import Path

import psycopg
import pytest
from lambda_pg import ConfigurationError, Settings
from lambda_pg._connection import Connection
from lambda_pg._connector import Connector
from lambda_pg._credentials import Credentials
from lambda_pg._overload import Breaker
from lambda_pg._url import SslMode
from psycopg.conninfo import conninfo_to_dict

LOGIN = Credentials("app", "p")
DATABASE = "app.c9akciq32.eu-west-1.rds.amazonaws.com"
PROXY = "app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com"
OPTIONS = "-c search_path=x"


class Connect:
    """Connects that end where libpq would begin."""

    conninfo = ""

    def __call__(self, conninfo: str) -> None:
        """Take what libpq would be given."""
        self.conninfo = conninfo
        raise psycopg.OperationalError("as far as the test goes")

    def asked(self, settings: Settings, credentials: Credentials = LOGIN) -> dict[str, str]:
        """Return what libpq would be asked for."""
        with pytest.raises(psycopg.OperationalError, match="as far as the test goes"):
            Connector(settings, Breaker()).connect(credentials, 1)
        return {name: str(value) for name, value in conninfo_to_dict(self.conninfo).items()}


@pytest.fixture
def connect(monkeypatch: pytest.MonkeyPatch) -> Connect:
    """Connects that end before they begin; every name has an address."""
    connect = Connect()
    monkeypatch.setattr(Connection, "_connect_gen", connect)
    monkeypatch.setattr("lambda_pg._connector.resolve", lambda *_: ["127.0.0.1"])
    return connect


@pytest.mark.parametrize(
    ("host", "file"),
    [(DATABASE, "rds/eu-west-1.pem"), (PROXY, "amazon.pem"), ("db.internal", "aws.pem")],
)
def test_the_host_decides_what_is_trusted(connect: Connect, host: str, file: str) -> None:
    """It may come from the settings or from the secret; the file is there."""
    given = Credentials("app", "p", host=host)
    for asked in (connect.asked(Settings(host=host)), connect.asked(Settings(), given)):
        assert asked["sslmode"] == "verify-full"
        assert asked["sslrootcert"].endswith(f"/certs/{file}")
        assert Path(asked["sslrootcert"]).exists()


@pytest.mark.parametrize("mode", ["disable", "allow", "prefer", "require"])
def test_without_verification_no_roots_are_passed(
    connect: Connect, tmp_path: Path, mode: SslMode
) -> None:
    """With a file of roots, libpq refuses a server that they do not verify, in every sslmode."""
    assert "sslrootcert" not in connect.asked(Settings(host="db.internal", sslmode=mode))
    named = Settings(host="db.internal", sslmode=mode, sslrootcert=tmp_path / "ca.pem")
    assert connect.asked(named)["sslrootcert"] == str(tmp_path / "ca.pem")


def test_named_roots_go_before_those_of_the_host(connect: Connect, tmp_path: Path) -> None:
    """A file or a text that the settings name is all that is trusted."""
    file = tmp_path / "roots.pem"
    assert connect.asked(Settings(host=DATABASE, sslrootcert=file))["sslrootcert"] == str(file)
    asked = connect.asked(Settings(host=DATABASE, ca_pem="-----BEGIN CERTIFICATE-----"))
    assert "/certs/" not in asked["sslrootcert"]


@pytest.mark.parametrize("given", ["", "there", "missing"])
def test_a_ca_is_written_where_temporary_files_belong(
    connect: Connect, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """Only this user can read it; a TMPDIR that is not there does not stop a connect."""
    (tmp_path / "there").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / given) if given else "")
    connector = Connector(Settings(host="db", ca_pem="the roots"), Breaker())
    with pytest.raises(psycopg.OperationalError, match="as far as the test goes"):
        connector.connect(LOGIN, 1)
    file = Path(str(conninfo_to_dict(connect.conninfo)["sslrootcert"]))
    assert file.parent == (tmp_path / "there" if given == "there" else Path("/tmp"))  # noqa: S108 - the default
    assert file.read_text() == "the roots"
    assert file.stat().st_mode & 0o777 == 0o600
    del connector
    assert not file.exists()


def test_options_come_from_the_settings_or_the_secret(connect: Connect) -> None:
    """Those of the settings go first; without any, libpq gets an empty text."""
    direct = Credentials("app", "p", host=DATABASE, options="-c search_path=y")
    assert connect.asked(Settings(options=OPTIONS), direct)["options"] == OPTIONS
    assert connect.asked(Settings(), direct)["options"] == direct.options
    assert connect.asked(Settings(host=DATABASE))["options"] == ""


@pytest.mark.parametrize(
    ("settings", "credentials", "source"),
    [
        (Settings(options=OPTIONS), Credentials("app", "p", host=PROXY), "settings"),
        (Settings(), Credentials("app", "p", host=PROXY, options=OPTIONS), "secret"),
        (Settings(host=PROXY), Credentials("app", "p", options=OPTIONS), "secret"),
        (Settings(host="db", profile="pgbouncer", options=OPTIONS), LOGIN, "settings"),
    ],
)
def test_options_are_refused_where_they_cannot_work(
    connect: Connect, settings: Settings, credentials: Credentials, source: str
) -> None:
    """Wherever options and host come from, a pooler that refuses the first is not even asked."""
    with pytest.raises(ConfigurationError, match=f"{source} (have|has) startup options") as caught:
        Connector(settings, Breaker()).connect(credentials, 1)
    assert "refuses startup options" in str(caught.value)
    assert not connect.conninfo


def test_channel_binding_comes_from_the_settings_or_the_secret(connect: Connect) -> None:
    """What a URL asks for is asked for, wherever the URL was."""
    bound = Credentials("app", "p", host="db", channel_binding="require")
    assert connect.asked(Settings(), bound)["channel_binding"] == "require"
    settings = Settings(host="db", channel_binding="require")
    assert connect.asked(settings)["channel_binding"] == "require"
