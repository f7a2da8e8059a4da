"""What a real libpq makes of the connects that the layer asks for."""

import pytest
from lambda_pg import ConfigurationError, ConnectFailedError

from tests.support.layer import Open, scalar


def test_options_of_the_environment_do_not_pass_the_settings_by(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libpq would read of its own accord has no effect; what the settings took has."""
    monkeypatch.setenv("PGOPTIONS", "-c search_path=of_libpq")
    assert scalar(open_database(), "SHOW search_path") != "of_libpq"
    chosen = open_database(options="-c search_path=of_settings")
    assert scalar(chosen, "SHOW search_path") == "of_settings"


OTHER_NAME = "db.internal"


@pytest.fixture
def cname(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that leads to the server, and that its certificate does not hold."""
    monkeypatch.setattr(
        "lambda_pg._connector.resolve",
        lambda host, _: ["127.0.0.1"] if host == OTHER_NAME else pytest.fail(f"looked up {host}"),
    )


@pytest.mark.usefixtures("cname")
def test_another_name_of_the_server_needs_the_one_that_its_certificate_holds(
    open_database: Open,
) -> None:
    """The refusal names the setting; with it the connection is verified for the endpoint."""
    with pytest.raises(ConnectFailedError, match=r"does not match .*LAMBDA_PG_RDS_ENDPOINT"):
        open_database(host=OTHER_NAME).execute("SELECT 1")
    db = open_database(host=OTHER_NAME, rds_endpoint="localhost")
    assert scalar(db, "SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()") is True


@pytest.mark.usefixtures("cname")
def test_what_stands_behind_another_name_is_told_by_the_endpoint(open_database: Open) -> None:
    """A proxy refuses startup options, whatever its CNAME is."""
    proxy = "app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com"
    db = open_database(host=OTHER_NAME, rds_endpoint=proxy, options="-c search_path=a")
    with pytest.raises(ConfigurationError, match="the profile rds-proxy refuses"):
        db.execute("SELECT 1")


def test_a_login_without_a_password_says_where_to_put_one(open_database: Open) -> None:
    """Libpq gives up by itself, and says nothing of settings."""
    with pytest.raises(ConnectFailedError, match=r"no password supplied: set LAMBDA_PG_SECRET_ARN"):
        open_database(password=None).execute("SELECT 1")
