"""Run-time settings: what is read, what is refused, and that nothing leaks."""

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import ConfigurationError, Settings, _settings

SECRET = {"LAMBDA_PG_SECRET_ARN": "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"}
CANARY = "canary-Pa55word"
PROXY = "app.proxy-c9akciq32.eu-west-1.rds.amazonaws.com"


def test_public_defaults_are_pinned() -> None:
    """A secret alone is enough, and every default is the documented one."""
    settings = Settings.from_env(SECRET)
    assert (settings.profile, settings.sslmode) == (None, "verify-full")
    assert (settings.auth, settings.direct, settings.options) == ("password", False, None)
    assert (settings.max_lifetime, settings.max_idle) == (None, None)
    assert (settings.strict, settings.metrics) == (False, False)
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


PASSWORD_ALONE = {"PGHOST": "db.example", "PGUSER": "me", "PGPASSWORD": CANARY}


def test_libpqs_own_password_is_taken_as_a_urls_is() -> None:
    """PGPASSWORD beside PGHOST and PGUSER is the password, and beats the URL's as they do."""
    assert Settings.from_env(PASSWORD_ALONE).password == CANARY
    url = {"DATABASE_URL": "postgresql://you:pw@db.example/app"}
    assert Settings.from_env(url | PASSWORD_ALONE).password == CANARY
    assert Settings.from_env(url).password == "pw"
    looks_like_a_url = PASSWORD_ALONE | {"PGPASSWORD": "a://b c@d"}
    assert Settings.from_env(looks_like_a_url).password == "a://b c@d"


def test_libpqs_own_password_belongs_to_its_endpoint() -> None:
    """A secret has its own; the direct URL too, like the user that PGUSER does not change there."""
    assert Settings.from_env(PASSWORD_ALONE | SECRET).password is None
    direct = PASSWORD_ALONE | {"DIRECT_URL": "postgresql://owner:pw@db.example/app"}
    assert Settings.from_env(direct, direct=True).password == "pw"


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"AWS_LAMBDA_FUNCTION_NAME": "f"}, r"PGPASSWORD holds a password .*LAMBDA_PG_ALLOW_PASSW"),
        ({"LAMBDA_PG_AUTH": "iam", "AWS_REGION": "eu-west-1"}, "PGPASSWORD holds a password: remo"),
        ({"PGPASSWORD": f"{CANARY}\n"}, "PGPASSWORD holds a character that cannot be printed"),
    ],
)
def test_a_password_that_cannot_count_is_refused_by_name(
    environ: dict[str, str], problem: str
) -> None:
    """The rules of a URL's password hold for PGPASSWORD, and no message shows it."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Settings.from_env(PASSWORD_ALONE | environ)
    assert len(caught.value.problems) == 1
    assert CANARY not in str(caught.value)


def test_a_functions_password_can_be_accepted_by_name() -> None:
    """As a URL with a password can."""
    environ = {"AWS_LAMBDA_FUNCTION_NAME": "f", "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT": "1"}
    assert Settings.from_env(PASSWORD_ALONE | environ).password == CANARY


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"PGHOST": "h1,h2"}, "PGHOST names several hosts: write one"),
        ({"PGHOST": "/run/postgresql"}, "PGHOST names a Unix socket: .*localhost"),
        ({"PGHOST": "@abstract"}, "PGHOST names a Unix socket: .*localhost"),
        ({"PGHOST": "db.example", "PGHOSTADDR": "10.0.0.7"}, "PGHOSTADDR is set.* set PGHOST"),
        ({"PGSERVICE": "production"}, "PGSERVICE is set, .* set PGHOST, PGPORT"),
        ({"PGSSLROOTCERT": "system"}, "PGSSLROOTCERT is 'system', .* Unset it: .*trust another CA"),
    ],
)
def test_what_libpq_takes_and_the_layer_does_not_is_refused(
    environ: dict[str, str], problem: str
) -> None:
    """Each refusal names the variable, what is wrong with it and what to write."""
    with pytest.raises(ConfigurationError, match=problem) as caught:
        Settings.from_env(SECRET | environ)
    assert len(caught.value.problems) == 1


def test_another_endpoints_variables_do_not_count_for_the_direct_one() -> None:
    """DIRECT_URL says everything itself."""
    environ = {"DIRECT_URL": "postgresql://me:pw@db.example/app", "PGHOSTADDR": "10.0.0.7"}
    environ |= {"PGHOST": "/run", "LAMBDA_PG_RDS_ENDPOINT": PROXY}
    settings = Settings.from_env(environ, direct=True)
    assert (settings.host, settings.rds_endpoint) == ("db.example", None)


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


@pytest.mark.parametrize("mode", ["require", "prefer", "allow", "verify-ca", "verify-full"])
def test_a_copied_url_is_raised_to_verified_tls(mode: str) -> None:
    """Consoles show sslmode=require: the layer verifies all the same, unless told not to."""
    environ = {"DATABASE_URL": f"postgresql://me:pw@db.example/app?sslmode={mode}"}
    assert Settings.from_env(environ).sslmode == "verify-full"
    environ["LAMBDA_PG_ALLOW_UNVERIFIED_TLS"] = "1"
    assert Settings.from_env(environ).sslmode == mode


def test_a_url_that_wants_no_tls_is_refused() -> None:
    """Who asks for no TLS would not get a connection with it: that is said, not tried."""
    environ = {"DATABASE_URL": "postgresql://me:pw@db.example/app?sslmode=disable"}
    with pytest.raises(ConfigurationError, match="the sslmode of DATABASE_URL is 'disable'"):
        Settings.from_env(environ)
    environ["LAMBDA_PG_ALLOW_UNVERIFIED_TLS"] = "1"
    assert Settings.from_env(environ).sslmode == "disable"


LOOPBACK = ["localhost", "LOCALHOST", "localhost.", "127.0.0.1", "127.8.9.1", "::1", "0:0::1"]


@pytest.mark.parametrize("host", LOOPBACK)
def test_on_a_laptop_the_loopback_needs_no_tls(host: str) -> None:
    """Outside Lambda TLS is used where the server has it, and any sslmode is taken as it is."""
    in_url = f"[{host}]" if ":" in host else host
    urls = {"DATABASE_URL": f"postgresql://me:pw@{in_url}/app"}
    for environ in (urls, {"PGHOST": host, "PGPASSWORD": "pw"}):
        assert Settings.from_env(environ).sslmode == "prefer"
        for mode in ("disable", "allow", "require", "verify-ca", "verify-full"):
            assert Settings.from_env({**environ, "PGSSLMODE": mode}).sslmode == mode
    assert Settings.from_env({"DIRECT_URL": urls["DATABASE_URL"]}, direct=True).sslmode == "prefer"
    for mode in ("disable", "require", "verify-full"):
        environ = {"DATABASE_URL": f"{urls['DATABASE_URL']}?sslmode={mode}"}
        assert Settings.from_env(environ).sslmode == mode


@pytest.mark.parametrize(
    "host",
    [
        *("db.example", "10.0.0.1", "128.0.0.1", "126.255.255.255", "127.1", "127.example"),
        *("localhost.example", "mylocalhost", "ip6-localhost"),
        *("::", "::2", "::ffff:127.0.0.1"),
    ],
)
def test_every_other_host_needs_tls(host: str) -> None:
    """What is not certainly this machine is verified, outside Lambda too."""
    assert Settings.from_env({"PGHOST": host}).sslmode == "verify-full"
    with pytest.raises(ConfigurationError, match="LAMBDA_PG_ALLOW_UNVERIFIED_TLS"):
        Settings.from_env({"PGHOST": host, "PGSSLMODE": "disable"})


@pytest.mark.parametrize(
    "more",
    [
        {"AWS_LAMBDA_FUNCTION_NAME": "f", "LAMBDA_PG_ALLOW_PASSWORD_IN_ENVIRONMENT": "1"},
        {"LAMBDA_PG_SECRET_ARN": "arn:aws:secretsmanager:eu-west-1:1:secret:s", "PGHOST": "::1"},
        {"LAMBDA_PG_RDS_ENDPOINT": "app.c9akciq32.eu-west-1.rds.amazonaws.com"},
        {
            "LAMBDA_PG_AUTH": "iam",
            "AWS_REGION": "eu-west-1",
            "DATABASE_URL": "postgresql://me@localhost/app",
        },
        {"LAMBDA_PG_CA_PEM": "-----BEGIN CERTIFICATE-----"},
        {"PGSSLROOTCERT": __file__},
    ],
    ids=lambda more: next(iter(more)),
)
def test_a_loopback_that_may_lead_elsewhere_needs_tls(more: dict[str, str]) -> None:
    """A function's, a tunnel's to RDS, one for a secret of AWS's; and one whose CA is known."""
    environ = {"DATABASE_URL": "postgresql://me:pw@localhost/app", **more}
    assert Settings.from_env(environ).sslmode == "verify-full"


@pytest.mark.parametrize(("name", "value"), [("LAMBDA_PG_ALLOW_UNVERIFIED_TLS", "yes")])
def test_a_switch_is_checked_on_the_loopback_too(name: str, value: str) -> None:
    """Where it is not needed it may still be wrong."""
    with pytest.raises(ConfigurationError, match=name):
        Settings.from_env({"PGHOST": "localhost", name: value})


def test_neons_url_keeps_its_channel_binding() -> None:
    """What the URL asks for beyond TLS is kept for the connect."""
    url = (
        "postgresql://me:pw@ep-a-1-pooler.aws.neon.tech/app?sslmode=require&channel_binding=require"
    )
    settings = Settings.from_env({"DATABASE_URL": url})
    assert (settings.sslmode, settings.channel_binding) == ("verify-full", "require")


def test_iam_needs_host_user_and_region_and_no_secret() -> None:
    """The region is the database's own where its host tells it, else the function's."""
    environ = {"LAMBDA_PG_AUTH": "iam", "PGHOST": PROXY, "PGUSER": "app", "AWS_REGION": "us-east-1"}
    settings = Settings.from_env(environ)
    assert (settings.auth, settings.host, settings.user) == ("iam", PROXY, "app")
    assert settings.region == "eu-west-1"
    assert Settings.from_env(environ | {"PGHOST": "db.internal"}).region == "us-east-1"


def test_an_endpoint_behind_another_name_is_taken_for_what_is_there() -> None:
    """Its region is the token's, and its profile refuses what the CNAME would not tell."""
    cname = {"LAMBDA_PG_AUTH": "iam", "PGHOST": "db.internal", "PGUSER": "app"}
    environ = cname | {"AWS_REGION": "us-east-1", "LAMBDA_PG_RDS_ENDPOINT": PROXY}
    settings = Settings.from_env(environ)
    assert (settings.host, settings.region) == ("db.internal", "eu-west-1")
    assert (settings.rds_endpoint, settings.rds_port) == (PROXY, None)
    tunnelled = Settings.from_env(environ | {"LAMBDA_PG_RDS_ENDPOINT": f"{PROXY}:5433"})
    assert (tunnelled.rds_endpoint, tunnelled.rds_port) == (PROXY, 5433)
    with pytest.raises(ConfigurationError, match="the profile rds-proxy refuses"):
        Settings.from_env(environ | {"PGOPTIONS": "-c x=1"})


@pytest.mark.parametrize(
    ("endpoint", "problem"),
    [
        ("a.example,b.example", "LAMBDA_PG_RDS_ENDPOINT names several hosts"),
        ("a.example:port", "LAMBDA_PG_RDS_ENDPOINT is 'port', not a port"),
        ("a.example:", "LAMBDA_PG_RDS_ENDPOINT is '', not a port"),
        ("https://a.example", "LAMBDA_PG_RDS_ENDPOINT holds a URL"),
    ],
)
def test_what_cannot_be_an_endpoint_is_named(endpoint: str, problem: str) -> None:
    """It is one host, with or without a port."""
    with pytest.raises(ConfigurationError, match=problem):
        Settings.from_env(SECRET | {"LAMBDA_PG_RDS_ENDPOINT": endpoint})


def test_what_iam_lacks_is_named() -> None:
    """Each missing part is a separate problem, and so are a secret and a password."""
    with pytest.raises(ConfigurationError) as caught:
        Settings.from_env({"LAMBDA_PG_AUTH": "iam", **SECRET})
    told = "; ".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert all(name in told for name in ("PGHOST", "PGUSER", "AWS_REGION", "LAMBDA_PG_SECRET_ARN"))
    with pytest.raises(ConfigurationError, match="DATABASE_URL holds a password"):
        Settings.from_env(
            {"LAMBDA_PG_AUTH": "iam", "DATABASE_URL": f"postgresql://me:pw@{PROXY}/app"}
        )


def test_direct_takes_the_direct_url_alone() -> None:
    """Nothing that describes the pooler's endpoint bends the direct one towards it."""
    environ = {
        "DATABASE_URL": "postgresql://me:pw@pooler.example:6543/app",
        "DIRECT_URL": "postgresql://admin:pw@db.example/app",
        "PGHOST": "pooler.example",
        "PGPORT": "6543",
        "PGUSER": "me",
        "PGDATABASE": "other",
        "LAMBDA_PG_PROFILE": "pgbouncer",
    }
    settings = Settings.from_env(environ, direct=True)
    assert (settings.host, settings.port) == ("db.example", None)
    assert (settings.user, settings.dbname) == ("admin", "app")
    assert (settings.direct, settings.profile) == (True, None)
    assert Settings.from_env(environ).host == "pooler.example"


def test_direct_with_a_secret_leaves_the_endpoint_to_the_secret() -> None:
    """The secret's direct_url is read at the first fetch; PGHOST is the pooler's."""
    settings = Settings.from_env({**SECRET, "PGHOST": "pooler.example"}, direct=True)
    assert (settings.host, settings.secret_arn) == (None, SECRET["LAMBDA_PG_SECRET_ARN"])


def test_direct_without_a_direct_url_is_refused_by_name() -> None:
    """A migration must not go through the pooler because a variable was forgotten."""
    with pytest.raises(ConfigurationError, match="DIRECT_URL"):
        Settings.from_env({"DATABASE_URL": "postgresql://db.example/app"}, direct=True)


@pytest.mark.parametrize(
    ("environ", "problem"),
    [
        ({"PGHOST": PROXY, "PGOPTIONS": "-c x=1"}, "PGOPTIONS .*rds-proxy refuses"),
        ({"LAMBDA_PG_PROFILE": "pgbouncer", "PGOPTIONS": "-c x=1"}, "PGOPTIONS .*pgbouncer"),
        (
            {"DATABASE_URL": "postgresql://ep-a-1-pooler.aws.neon.tech/d?options=-c%20x%3D1"},
            "DATABASE_URL sets options: the profile neon",
        ),
    ],
)
def test_options_are_refused_where_they_certainly_fail(
    environ: dict[str, str], problem: str
) -> None:
    """A pooler that refuses startup options is known before the first connect."""
    with pytest.raises(ConfigurationError, match=problem):
        Settings.from_env({**SECRET, **environ} if "DATABASE_URL" not in environ else environ)


def test_options_are_kept_where_they_may_work() -> None:
    """A direct address takes them; where the secret names the host, the connect decides."""
    for environ in (SECRET, {**SECRET, "PGHOST": "db.example"}):
        assert Settings.from_env({**environ, "PGOPTIONS": "-c x=1"}).options == "-c x=1"
    url = "postgresql://db.example/app?options=-c%20x%3D1"
    assert Settings.from_env({"DATABASE_URL": url}).options == "-c x=1"


def test_the_pools_ages_can_be_set() -> None:
    """Both are seconds up to a day, and the profile's where nothing is set."""
    environ = {**SECRET, "LAMBDA_PG_MAX_LIFETIME": "3600", "LAMBDA_PG_MAX_IDLE": "50.5"}
    settings = Settings.from_env(environ)
    assert (settings.max_lifetime, settings.max_idle) == (3600.0, 50.5)
    with pytest.raises(ConfigurationError, match=r"LAMBDA_PG_MAX_IDLE is '86401'.*86400"):
        Settings.from_env({**SECRET, "LAMBDA_PG_MAX_IDLE": "86401"})


def test_a_switch_is_on_or_off() -> None:
    """What is neither 0 nor 1 is a mistake, not off."""
    environ = {**SECRET, "LAMBDA_PG_STRICT": "1", "LAMBDA_PG_METRICS": "1"}
    settings = Settings.from_env(environ)
    assert (settings.strict, settings.metrics) == (True, True)
    assert not Settings.from_env({**SECRET, "LAMBDA_PG_STRICT": "0"}).strict
    with pytest.raises(ConfigurationError, match="LAMBDA_PG_STRICT is 'true'"):
        Settings.from_env({**SECRET, "LAMBDA_PG_STRICT": "true"})


def test_a_missing_root_certificate_is_named(tmp_path: Path) -> None:
    """A PGSSLROOTCERT that is not a file is a problem of the settings, not of the first request."""
    with pytest.raises(ConfigurationError, match=r"PGSSLROOTCERT is .*not a file"):
        Settings.from_env({**SECRET, "PGSSLROOTCERT": str(tmp_path / "none.pem")})
    with pytest.raises(ConfigurationError, match="PGSSLROOTCERT is 5000 characters long"):
        Settings.from_env({**SECRET, "PGSSLROOTCERT": "x" * 5000})


def test_repr_masks_the_password() -> None:
    """Settings can be printed."""
    settings = Settings.from_env({"DATABASE_URL": f"postgresql://me:{CANARY}@db.example/app"})
    assert CANARY not in repr(settings)


NAMES = sorted(
    set(re.findall(r'"((?:LAMBDA_PG_|PG|AWS_R)[A-Z_]*)"', Path(_settings.__file__).read_text()))
    | {"DATABASE_URL", "DIRECT_URL", "AWS_LAMBDA_FUNCTION_NAME"}
)
URLS = st.one_of(
    st.text(max_size=20).map(lambda text: f"postgresql://u:{CANARY}@{text}"),
    st.text(max_size=20).map(lambda text: f"postgresql://u:{text}{CANARY}@h:5/d"),
    st.sampled_from(["sslmode", "options", "pgbouncer", "channel_binding", "x"]).map(
        lambda name: f"postgres://u:{CANARY}@{PROXY}/d?{name}={CANARY}"
    ),
    st.just(f"  https://u:{CANARY}@h\n"),
)
VALUES = st.one_of(
    URLS,
    st.text(max_size=10),
    st.sampled_from(["1", "0", "-1", "nan", "inf", "1e400", "٣", "9" * 5000, "iam", "neon"]),
    st.sampled_from(["verify-full", "disable", "pgbouncer", "supabase", "-----BEGIN CERT", "\0"]),
)


@given(st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=6), st.booleans())
def test_any_environment_gives_settings_or_a_configuration_error(
    environ: dict[str, str], direct: bool
) -> None:
    """Each problem holds a variable's name, and no message or repr holds the password."""
    problems: tuple[str, ...] = ()
    try:
        told = repr(Settings.from_env(environ, direct=direct))
    except ConfigurationError as error:
        problems = error.problems
        told = f"{error} {error!r} {error.__cause__!r} {error.__context__!r}"
    assert CANARY not in told
    assert all(any(name in problem for name in NAMES) for problem in problems)


@pytest.mark.parametrize("name", sorted({*NAMES} - {"LAMBDA_PG_CA_PEM"}))
def test_a_url_in_the_wrong_variable_is_not_shown(name: str) -> None:
    """A URL with a password, pasted anywhere, shows in no message and no repr."""
    for text in (f"postgresql://u:{CANARY}@h/d", f"u:{CANARY}@h/d"):
        environ = {**SECRET, "AWS_LAMBDA_FUNCTION_NAME": "f", name: text}
        try:
            settings = Settings.from_env(environ)
            told = repr(settings) if "://" in text else ""  # a user may be called u:x@h
        except ConfigurationError as error:
            told = f"{error!r} {error}"
        assert CANARY not in told


def test_the_fuzz_knows_every_variable() -> None:
    """A variable that is added is fuzzed without being listed here."""
    assert {"PGOPTIONS", "LAMBDA_PG_AUTH", "LAMBDA_PG_SECRET_ARN", "AWS_REGION"} <= set(NAMES)
