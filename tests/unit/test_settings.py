"""Run-time settings: what is read, what is refused, and that nothing leaks."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import ConfigurationError, Settings

SECRET = {"LAMBDA_PG_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"}
CANARY = "canary-Pa55word"


def test_public_defaults_are_pinned() -> None:
    """A secret alone is enough, and every default is the documented one."""
    settings = Settings.from_env(SECRET)
    assert (settings.profile, settings.sslmode) == ("direct", "verify-full")
    assert (settings.checkout_timeout, settings.idle_check_after, settings.slots) == (3.0, 30.0, 1)
    assert settings.host is None
    assert settings.port is None


def test_every_problem_is_reported_at_once() -> None:
    """Four wrong variables give one error that names each with its value and what is allowed."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env(
            {
                "PGPORT": "99999",
                "LAMBDA_PG_PROFILE": "pgpool",
                "LAMBDA_PG_CHECKOUT_TIMEOUT": "-1",
            }
        )
    problems = caught.value.problems
    assert len(problems) == 4
    assert any("LAMBDA_PG_SECRET_ARN" in text and "DATABASE_URL" in text for text in problems)
    assert any("PGPORT is '99999'" in text and "65535" in text for text in problems)
    assert any(
        "LAMBDA_PG_PROFILE is 'pgpool'" in text and "'pgbouncer'" in text for text in problems
    )
    assert any("LAMBDA_PG_CHECKOUT_TIMEOUT is '-1'" in text for text in problems)


def test_a_url_just_works_outside_lambda() -> None:
    """DATABASE_URL gives endpoint, database, user and password, percent-decoded."""
    settings = Settings.from_env({"DATABASE_URL": "postgres://me:p%40ss@db.example:6543/my%20db"})
    assert (settings.host, settings.port, settings.dbname) == ("db.example", 6543, "my db")
    assert (settings.user, settings.password) == ("me", "p@ss")


def test_a_password_in_a_functions_environment_is_refused() -> None:
    """In Lambda a URL with a password is refused unless a setting says so in its name."""
    environ = {
        "AWS_LAMBDA_FUNCTION_NAME": "f",
        "DATABASE_URL": f"postgresql://me:{CANARY}@db.example/app",
    }
    with pytest.raises(
        ConfigurationError, match="LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT"
    ) as caught:
        Settings.from_env(environ)
    assert CANARY not in str(caught.value)
    allowed = Settings.from_env({**environ, "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT": "1"})
    assert allowed.password == CANARY


@pytest.mark.parametrize("mode", ["require", "prefer", "disable", "verify-ca"])
def test_unverified_tls_needs_a_setting_that_says_so(mode: str) -> None:
    """Anything weaker than verify-full is refused by name."""
    with pytest.raises(ConfigurationError, match=f"PGSSLMODE is '{mode}'"):
        Settings.from_env({**SECRET, "PGSSLMODE": mode})
    environ = {**SECRET, "PGSSLMODE": mode, "LAMBDA_PG_ALLOW_UNVERIFIED_TLS": "1"}
    assert Settings.from_env(environ).sslmode == mode


def test_a_missing_root_certificate_is_named(tmp_path: Path) -> None:
    """A PGSSLROOTCERT that is no file is a problem of the settings, not of the first request."""
    with pytest.raises(ConfigurationError, match=r"PGSSLROOTCERT is .*no such file"):
        Settings.from_env({**SECRET, "PGSSLROOTCERT": str(tmp_path / "none.pem")})


def test_repr_masks_the_password() -> None:
    """Settings can be printed."""
    settings = Settings.from_env({"DATABASE_URL": f"postgresql://me:{CANARY}@db.example/app"})
    assert CANARY not in repr(settings)


@given(st.text(max_size=60))
def test_any_url_gives_settings_or_a_configuration_error(text: str) -> None:
    """DATABASE_URL makes nothing but a ConfigurationError, which never shows the password."""
    url = f"postgresql://u:{CANARY}@{text}"
    told = ""
    try:
        Settings.from_env({"DATABASE_URL": url})
    except ConfigurationError as error:
        told = str(error)
    assert CANARY not in told
