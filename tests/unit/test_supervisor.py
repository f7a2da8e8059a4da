"""The parts of PgBouncer's supervisor that need no process: settings, files, secrets, protocol."""

import errno
import json
import struct
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError, EndpointConnectionError

import lambda_pg_cdk.migrations.roles
from lambda_pg_cdk.pgbouncer.configuration import (
    Console,
    Files,
    User,
    is_machine_made,
    render_access,
    render_ini,
    render_users,
    scram_iterations,
)
from lambda_pg_cdk.pgbouncer.files import Folder
from lambda_pg_cdk.pgbouncer.secret_store import (
    Certificate,
    Content,
    SecretStore,
    SecretUnusableError,
)
from lambda_pg_cdk.pgbouncer.session import (
    column_names,
    error_text,
    query_message,
    startup_message,
    values,
)
from lambda_pg_cdk.pgbouncer.settings import (
    DATABASE_NAME_LIMIT,
    MetricsSettings,
    PeersSettings,
    Settings,
    SettingsError,
    SqlSettings,
)
from lambda_pg_cdk.pgbouncer.supervisor import open_files
from lambda_pg_cdk.stage.config import PgBouncer
from lambda_pg_cdk.stage.task import OPEN_FILES, sql_database

USER_ARN = "arn:aws:secretsmanager:eu-west-1:000000000000:secret:user"
SQL_ARN = "arn:aws:secretsmanager:eu-west-1:000000000000:secret:reader"
LEAF_ARN = "arn:aws:secretsmanager:eu-west-1:000000000000:secret:leaf"
CONSOLE = Console("admin-1", "observer-1")
SQL = {
    "SQL_SECRET_ARNS": f"{SQL_ARN}, {SQL_ARN}-2",
    "SQL_POOL_SIZE": "3",
    "SQL_MAX_DB_CONNECTIONS": "4",
}
METADATA = "http://169.254.170.2/v4/task"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """The variables of a task definition."""
    bundle = tmp_path / "aws.pem"
    bundle.touch()
    return {
        "LISTEN_PORT": "6432",
        "DATABASE_HOST": "db.example.internal",
        "DATABASE_PORT": "5432",
        "DATABASE_NAME": "app",
        "USER_SECRET_ARNS": f"{USER_ARN}, {USER_ARN}-2",
        "CERTIFICATE_SECRET_ARN": LEAF_ARN,
        "SERVER_TLS_CA_FILE": str(bundle),
        "POOL_MODE": "transaction",
        "MAX_CLIENT_CONN": "2000",
        "DEFAULT_POOL_SIZE": "20",
        "MAX_DB_CONNECTIONS": "25",
        "QUERY_WAIT_TIMEOUT": "2",
        "REFRESH_INTERVAL": "30",
        "DRAIN_TIMEOUT": "60",
    }


# Settings


def test_a_task_definition_is_read(environment: dict[str, str]) -> None:
    """Each variable arrives with its type, and the list of secrets without its spaces."""
    settings = Settings.from_env(environment)
    assert settings.user_secret_arns == (USER_ARN, f"{USER_ARN}-2")
    assert (settings.max_client_conn, settings.refresh_interval) == (2000, 30.0)
    assert settings.run_dir == Path("/run/pgbouncer")
    assert settings.listen_addr == "0.0.0.0"  # noqa: S104 - the default inside a task


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DATABASE_HOST", "", "DATABASE_HOST is missing"),
        ("USER_SECRET_ARNS", "", "USER_SECRET_ARNS is missing"),
        ("MAX_DB_CONNECTIONS", "", "MAX_DB_CONNECTIONS is missing"),
        ("LISTEN_PORT", "70000", "LISTEN_PORT is '70000', but must be a whole number from 1"),
        ("POOL_MODE", "fast", "POOL_MODE is 'fast', but must be transaction or session"),
        ("REFRESH_INTERVAL", "soon", "REFRESH_INTERVAL is 'soon', but must be a number of seconds"),
        ("REFRESH_INTERVAL", "nan", "REFRESH_INTERVAL is 'nan'"),
        ("SERVER_TLS_CA_FILE", "/nowhere.pem", "SERVER_TLS_CA_FILE is '/nowhere.pem', but must be"),
        ("DATABASE_HOST", "db port=1", "DATABASE_HOST is 'db port=1', but must be"),
        ("DATABASE_NAME", "app\nadmin_users = x", "DATABASE_NAME is 'app"),
        ("RUN_DIR", "/run/" + "x" * 100, "RUN_DIR is too long"),
        ("QUERY_WAIT_TIMEOUT", "6", "QUERY_WAIT_TIMEOUT is '6', but must be a whole number from 1"),
        ("PEERS_SERVICE", "pooler", "PEERS_SERVICE is set, but not PEERS_NAMESPACE: set both"),
        ("PEERS_NAMESPACE", "app", "PEERS_NAMESPACE is set, but not PEERS_SERVICE: set both"),
        ("PEERS_INTERVAL", "0", "PEERS_INTERVAL is '0', but must be a number of seconds"),
        ("METRICS_INTERVAL", "-1", "METRICS_INTERVAL is '-1', but must be a number of seconds"),
        ("METRICS_NAMESPACE", "AWS/ECS", "METRICS_NAMESPACE is 'AWS/ECS', but must be"),
        ("METRICS_POOLER", 'a"b', "METRICS_POOLER is 'a\"b', but must be"),
        ("SQL_SECRET_ARNS", SQL_ARN, "SQL_POOL_SIZE is missing; SQL_MAX_DB_CONNECTIONS is missing"),
    ],
)
def test_a_wrong_variable_is_named_with_its_value(
    environment: dict[str, str], name: str, value: str, message: str
) -> None:
    """The message says which variable, what it is and what is allowed."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environment | {name: value})
    assert message in str(caught.value)


def test_all_problems_come_at_once(environment: dict[str, str]) -> None:
    """Nobody has to deploy once for each missing variable."""
    del environment["DATABASE_HOST"], environment["CERTIFICATE_SECRET_ARN"]
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environment)
    assert "DATABASE_HOST is missing; CERTIFICATE_SECRET_ARN is missing" in str(caught.value)


def test_a_task_alone_that_nobody_measures_has_neither_peers_nor_metrics(
    environment: dict[str, str],
) -> None:
    """What is not named is off."""
    settings = Settings.from_env(environment)
    assert (settings.peers, settings.metrics) == (None, None)


def test_peers_and_metrics_are_read_with_their_defaults(environment: dict[str, str]) -> None:
    """The names turn them on; ECS's own variable says where to read the task's address."""
    environment |= {
        "PEERS_NAMESPACE": "app.internal",
        "PEERS_SERVICE": "pooler",
        "ECS_CONTAINER_METADATA_URI_V4": METADATA,
        "METRICS_POOLER": "dev",
    }
    settings = Settings.from_env(environment)
    assert settings.peers == PeersSettings("app.internal", "pooler", 5.0, METADATA)
    assert settings.metrics == MetricsSettings(60.0, "LambdaPg", "dev")


def test_an_interval_of_zero_turns_metrics_off(environment: dict[str, str]) -> None:
    """The pooler keeps its name for when they are wanted again."""
    environment |= {"METRICS_POOLER": "dev", "METRICS_INTERVAL": "0"}
    assert Settings.from_env(environment).metrics is None


def test_the_way_to_the_peers_needs_room_for_its_path_too(environment: dict[str, str]) -> None:
    """A folder that is short enough for one task can be too long for several."""
    environment |= {"RUN_DIR": "/run/" + "x" * 80, "ECS_CONTAINER_METADATA_URI_V4": METADATA}
    assert Settings.from_env(environment).peers is None
    environment |= {"PEERS_NAMESPACE": "app.internal", "PEERS_SERVICE": "pooler"}
    with pytest.raises(SettingsError, match=r"RUN_DIR is too long: the socket .*/peers/"):
        Settings.from_env(environment)


def test_the_second_name_is_read_with_its_bounds(environment: dict[str, str]) -> None:
    """It is the one that the stage gives the function `sql`; without its secrets there is none."""
    assert Settings.from_env(environment).sql is None
    settings = Settings.from_env(environment | SQL)
    assert settings.sql == SqlSettings("app_sql", (SQL_ARN, f"{SQL_ARN}-2"), 3, 4, 0)
    assert settings.sql.database == sql_database("app")
    assert open_files(settings) == open_files(Settings.from_env(environment)) + 4


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"SQL_MAX_CLIENT_CONN": "2000"},
            "SQL_MAX_CLIENT_CONN is 2000, but must be less than MAX_CLIENT_CONN (2000)",
        ),
        (
            {"SQL_SECRET_ARNS": f"{SQL_ARN},{USER_ARN}"},
            f"SQL_SECRET_ARNS and USER_SECRET_ARNS both have {USER_ARN}:",
        ),
        (
            {"DATABASE_NAME": "a" * 60},
            f"has 64 characters, and {DATABASE_NAME_LIMIT} is the most",
        ),
    ],
)
def test_a_second_name_that_does_not_fit_is_refused(
    environment: dict[str, str], changes: dict[str, str], message: str
) -> None:
    """The message says with which value."""
    with pytest.raises(SettingsError) as caught:
        Settings.from_env(environment | SQL | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize("url", ["", "169.254.170.2", "file:///etc/passwd"])
def test_peers_without_a_way_to_the_own_address_are_refused(
    environment: dict[str, str], url: str
) -> None:
    """Outside ECS somebody has to serve the task's metadata."""
    environment |= {"PEERS_NAMESPACE": "app.internal", "PEERS_SERVICE": "pooler"}
    with pytest.raises(SettingsError, match="ECS_CONTAINER_METADATA_URI_V4 is"):
        Settings.from_env(environment | {"ECS_CONTAINER_METADATA_URI_V4": url})


def test_the_largest_task_that_a_stage_allows_finds_enough_files(
    environment: dict[str, str],
) -> None:
    """With fewer files than it needs the supervisor would refuse to start, on AWS only."""
    rules = {field.name: field.metadata["rule"] for field in fields(PgBouncer)}
    names = ("max_client_conn", "max_db_connections")
    most = {name.upper(): str(rules[name].maximum) for name in names}
    assert open_files(Settings.from_env(environment | most)) <= OPEN_FILES


# Files


def ini_of(environment: dict[str, str]) -> dict[str, str]:
    """Render the main file and read it back."""
    settings = Settings.from_env(environment)
    lines = render_ini(settings, Files(Path("/run/pgbouncer")), CONSOLE, ()).splitlines()
    return dict(line.split(" = ", 1) for line in lines if " = " in line)


def test_every_default_that_does_not_fit_lambda_is_set(environment: dict[str, str]) -> None:
    """The list of field notes: each of these is wrong when it is left alone."""
    ini = ini_of(environment)
    assert ini["app"] == "host=db.example.internal port=5432 dbname=app"
    expected = {
        "client_tls_sslmode": "require",
        "server_tls_sslmode": "verify-full",
        "pool_mode": "transaction",
        "max_client_conn": "2002",  # with the supervisor's own two
        "default_pool_size": "20",
        "max_db_connections": "25",
        "query_wait_timeout": "2",
        "server_login_retry": "0.2",
        "client_login_timeout": "32",
        "idle_transaction_timeout": "15",
        "dns_max_ttl": "1",
        "max_prepared_statements": "200",
        "listen_backlog": "4096",
        "auth_type": "hba",
        "tcp_keepidle": "330",
        "tcp_user_timeout": "10000",
        "admin_users": "admin-1",
        "stats_users": "observer-1",
    }
    if sys.platform != "linux":
        del expected["tcp_user_timeout"]
    assert {name: ini[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("password", "made"),
    [
        ("tiV2Z_w0kQ.n8LrJ5sXcGdYpO1uHe7AbMf4TzWq9", True),
        ("tiV2Z_w0kQ.n8LrJ5sXcGdYpO1uHe7AbMf4TzWq9xY", True),
        ("tiV2Z_w0kQ.n8LrJ5sXcGdYpO1uHe7AbMf4TzWq", False),  # 39 characters
        ("aB3.".ljust(40, "x"), False),
        ("My-horse-is-called-Bucephalus-since-2026", False),
        ("tiV2Z w0kQ.n8LrJ5sXcGdYpO1uHe7AbMf4TzWq9", False),
        ("tivzw0kqn8lrj5sxcgdypo1uhe7abmf4tzwq9tiv", False),  # no capital letter
        ("", False),
    ],
)
def test_only_what_a_machine_made_goes_without_rounds(password: str, made: bool) -> None:
    """The pooler and the migrations, which make the database's verifiers, judge alike."""
    assert is_machine_made(password) is made
    assert lambda_pg_cdk.migrations.roles.is_machine_made(password) is made


def test_one_chosen_password_brings_the_rounds_back(environment: dict[str, str]) -> None:
    """PgBouncer has one number for all users."""
    made = User("made", "tiV2Z_w0kQ.n8LrJ5sXcGdYpO1uHe7AbMf4TzWq9")
    assert scram_iterations([made, made]) == 1
    assert scram_iterations([made, User("chosen", "secret")]) == 4096
    assert ini_of(environment)["scram_iterations"] == "1"  # nobody is known yet


def test_only_the_socket_reaches_the_console_and_only_tls_the_database(
    environment: dict[str, str],
) -> None:
    """There is no line for TCP without TLS, and none for the console over TCP."""
    rules = [
        line.split() for line in render_access(Settings.from_env(environment), CONSOLE).splitlines()
    ]
    assert {rule[0] for rule in rules} == {"local", "hostssl"}
    assert [rule for rule in rules if rule[1] == "pgbouncer"] == [
        ["local", "pgbouncer", '"admin-1"', "password"],
        ["local", "pgbouncer", '"observer-1"', "trust"],
    ]
    assert {rule[-1] for rule in rules if rule[0] == "hostssl"} == {"scram-sha-256"}


def test_the_second_name_has_bounds_of_its_own(environment: dict[str, str]) -> None:
    """And always pools by transaction: a session would keep one of its few connections."""
    server = "host=db.example.internal port=5432 dbname=app"
    bounds = "pool_mode=transaction pool_size=3 max_db_connections=4"
    ini = ini_of(environment | SQL | {"POOL_MODE": "session"})
    assert (ini["app"], ini["app_sql"]) == (server, f"{server} {bounds}")
    assert (ini["pool_mode"], ini["max_db_connections"]) == ("session", "25")


def test_the_two_names_share_the_places_of_clients_out(environment: dict[str, str]) -> None:
    """Those that one name may have are none of the other one's."""
    ini = ini_of(environment | SQL | {"SQL_MAX_CLIENT_CONN": "100"})
    assert ini["app"].endswith("dbname=app max_db_client_connections=1900")
    assert ini["app_sql"].endswith("max_db_connections=4 max_db_client_connections=100")
    assert ini["max_client_conn"] == "2002"  # with the supervisor's own two


def test_each_name_rejects_the_users_of_the_other_one(environment: dict[str, str]) -> None:
    """Before the line that lets anybody try; no line leaves the name of its database open."""
    access = render_access(
        Settings.from_env(environment | SQL),
        CONSOLE,
        [User("app", "x"), User('a"b', "x")],
        [User("reader", "x")],
    )
    rules = [line.split() for line in access.splitlines()]
    assert [rule[1:] for rule in rules if rule[0] == "hostssl" and rule[3] == "::/0"] == [
        ['"app"', '"reader"', "::/0", "reject"],
        ['"app"', "all", "::/0", "scram-sha-256"],
        ['"app_sql"', '"app","a""b"', "::/0", "reject"],
        ['"app_sql"', "all", "::/0", "scram-sha-256"],
    ]
    assert {rule[1] for rule in rules} == {"pgbouncer", '"app"', '"app_sql"'}
    names = {rule[1] for rule in rules if rule[:3] == ["local", rule[1], "all"]}
    assert names == {'"app"', '"app_sql"'}


def test_quotes_in_passwords_are_doubled() -> None:
    """PgBouncer's file knows no other escape."""
    assert render_users([User('a"b', 'p"\\w d')]) == '"a""b" "p""\\w d"\n'


@pytest.mark.parametrize("password", ["", "a\nb", "a\0b", "a\rb"])
def test_a_password_that_the_file_cannot_hold_is_refused(password: str) -> None:
    """A line break would let one secret add another user."""
    with pytest.raises(ValueError, match="empty or has a line break") as caught:
        render_users([User("a", password)])
    assert "a\\nb" not in str(caught.value)


def test_secrets_do_not_show_in_reprs() -> None:
    """A traceback or a log of these objects gives nothing away."""
    assert "canary" not in repr([User("a", "canary"), Certificate("canary", "chain")])


def test_users_and_certificate_are_replaced_both_or_neither(
    environment: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is space for one of them only, PgBouncer keeps the pair that it has."""
    folder = Folder(Settings.from_env(environment | {"RUN_DIR": str(tmp_path)}))
    paths = [folder.files.users, folder.files.certificate]
    assert folder.update(Content((User("app", "one"),), Certificate("KEY", "CHAIN")))
    before = [path.read_text() for path in paths]
    write_text = Path.write_text

    def until_full(path: Path, text: str) -> int:
        if path.name.startswith("certificate"):
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_text(path, text)

    later = Content((User("app", "two"),), Certificate("ANOTHER KEY", "CHAIN"))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", until_full)
        with pytest.raises(OSError, match=r"No space left on device: '.*/certificate\.pem\.new'"):
            folder.update(later)
        with pytest.raises(OSError, match="No space left on device"):
            folder.check(later.certificate)
    assert [path.read_text() for path in paths] == before
    assert {path.name for path in tmp_path.iterdir()} <= {
        "pgbouncer.ini", "access.conf", "admin_dsn", "users.txt", "certificate.pem", "aws.pem",
    }  # fmt: skip
    assert folder.update(later)
    assert '"two"' in folder.files.users.read_text()
    assert not folder.update(later)


# Secrets


class FakeSecrets:
    """Secrets Manager as a dictionary: (arn, stage) → text."""

    def __init__(self) -> None:
        """Begin with one user and one certificate."""
        self.texts = {
            (USER_ARN, "AWSCURRENT"): json.dumps({"username": "app", "password": "one"}),
            (LEAF_ARN, "AWSCURRENT"): json.dumps(
                {"private_key": "KEY", "certificate_chain": "CHAIN"}
            ),
        }
        self.reachable = True

    def __call__(self, arn: str, stage: str) -> dict[str, Any]:
        """Answer as GetSecretValue does."""
        if not self.reachable:
            raise EndpointConnectionError(endpoint_url="nowhere")
        if (arn, stage) not in self.texts:
            answer = {"Error": {"Code": "ResourceNotFoundException", "Message": "none"}}
            raise ClientError(answer, "GetSecretValue")
        return {"VersionId": "1", "SecretString": self.texts[arn, stage]}


@pytest.fixture
def secrets() -> FakeSecrets:
    """Secrets of a running deployment."""
    return FakeSecrets()


def users_of(store: SecretStore) -> list[User]:
    """List the users of the last good content."""
    assert store.content is not None
    return list(store.content.users)


def store_of(secrets: FakeSecrets, reports: list[str] | None = None) -> SecretStore:
    """Make a store that accepts any certificate."""
    report = (reports if reports is not None else []).append
    return SecretStore((USER_ARN,), LEAF_ARN, read=secrets, check=lambda _: None, report=report)


def test_there_is_no_content_before_the_first_look(secrets: FakeSecrets) -> None:
    """Nobody is served with half of what is needed."""
    store = store_of(secrets)
    assert store.content is None
    del secrets.texts[LEAF_ARN, "AWSCURRENT"]
    store.refresh()
    assert store.content is None


def test_a_look_finds_user_and_certificate(secrets: FakeSecrets) -> None:
    """Current secrets are taken."""
    store = store_of(secrets)
    store.refresh()
    assert users_of(store) == [User("app", "one")]
    assert store.content is not None
    assert store.content.certificate.pem == "KEY\nCHAIN\n"


def test_the_previous_user_of_an_alternating_rotation_stays(secrets: FakeSecrets) -> None:
    """Both users may log in; of one user only the current password counts."""
    secrets.texts[USER_ARN, "AWSPREVIOUS"] = secrets.texts[USER_ARN, "AWSCURRENT"]
    secrets.texts[USER_ARN, "AWSCURRENT"] = '{"username": "app_clone", "password": "two"}'
    store = store_of(secrets)
    store.refresh()
    assert users_of(store) == [User("app_clone", "two"), User("app", "one")]
    secrets.texts[USER_ARN, "AWSCURRENT"] = '{"username": "app", "password": "three"}'
    store.refresh()
    assert users_of(store) == [User("app", "three")]


@pytest.mark.parametrize("broken", ["", "not json", "[]", '{"username": "app"}', '{"password": 1}'])
def test_an_unusable_secret_keeps_the_last_good_one(secrets: FakeSecrets, broken: str) -> None:
    """The report names the secret and quotes nothing of it."""
    reports: list[str] = []
    store = store_of(secrets, reports)
    store.refresh()
    secrets.texts[USER_ARN, "AWSCURRENT"] = broken
    store.refresh()
    assert users_of(store) == [User("app", "one")]
    (report,) = reports
    assert USER_ARN in report
    assert "keeping the last good one" in report
    assert "not json" not in report


def test_a_secret_counts_as_unreadable_until_it_was_read(secrets: FakeSecrets) -> None:
    """The certificate's does while only the users are looked at."""
    store = store_of(secrets)
    good = secrets.texts[LEAF_ARN, "AWSCURRENT"]
    secrets.texts[LEAF_ARN, "AWSCURRENT"] = "{}"
    store.refresh()
    store.refresh(certificate=False)
    assert store.unreadable == 1
    secrets.reachable = False
    store.refresh()
    assert store.unreadable == 2
    secrets.reachable, secrets.texts[LEAF_ARN, "AWSCURRENT"] = True, good
    store.refresh()
    assert store.unreadable == 0


def sql_store(secrets: FakeSecrets, reports: list[str]) -> SecretStore:
    """Make a store of the application's secret and of one for `/sql`."""
    return SecretStore(
        (USER_ARN,),
        LEAF_ARN,
        (SQL_ARN,),
        read=secrets,
        check=lambda _: None,
        report=reports.append,
    )


def test_an_unreadable_secret_of_sql_does_not_hold_up_the_application(
    secrets: FakeSecrets,
) -> None:
    """It is missing, reported and counted; its users come with a later look."""
    reports: list[str] = []
    store = sql_store(secrets, reports)
    store.refresh()
    assert (users_of(store), store.missing, store.unreadable) == (
        [User("app", "one")],
        [SQL_ARN],
        1,
    )
    assert "none yet" in reports[0]
    secrets.texts[SQL_ARN, "AWSCURRENT"] = '{"username": "reader", "password": "two"}'
    store.refresh()
    assert store.content is not None
    assert store.content.sql_users == (User("reader", "two"),)
    assert (users_of(store), store.missing, store.unreadable) == ([User("app", "one")], [], 0)


def test_users_of_sql_alone_are_no_content(secrets: FakeSecrets) -> None:
    """A task that cannot serve the application does not start."""
    del secrets.texts[USER_ARN, "AWSCURRENT"]
    secrets.texts[SQL_ARN, "AWSCURRENT"] = '{"username": "reader", "password": "two"}'
    store = sql_store(secrets, [])
    store.refresh()
    assert store.content is None


def test_a_name_in_both_kinds_of_secrets_is_the_applications(secrets: FakeSecrets) -> None:
    """Else each name of the database would reject it; the report says so."""
    secrets.texts[SQL_ARN, "AWSCURRENT"] = '{"username": "app", "password": "canary"}'
    reports: list[str] = []
    store = sql_store(secrets, reports)
    store.refresh()
    assert store.content is not None
    assert (users_of(store), store.content.sql_users) == ([User("app", "one")], ())
    (report,) = reports
    assert report.startswith("app is a user of the application and of /sql")


def test_an_unreachable_service_keeps_the_last_good_content(secrets: FakeSecrets) -> None:
    """An outage of Secrets Manager is a line in the log."""
    reports: list[str] = []
    store = store_of(secrets, reports)
    store.refresh()
    secrets.reachable = False
    store.refresh()
    assert store.content is not None
    assert len(reports) == 2


@pytest.mark.parametrize(
    "refusal",
    [SecretUnusableError("its certificate and key do not load"), OSError(28, "No space left")],
    ids=["does not load", "no space to check it"],
)
def test_a_certificate_that_does_not_load_is_not_taken(
    secrets: FakeSecrets, refusal: Exception
) -> None:
    """The check decides; its refusal is reported at each look until it is mended."""
    reports: list[str] = []

    def refuse(_: Certificate) -> None:
        raise refusal

    store = SecretStore((USER_ARN,), LEAF_ARN, read=secrets, check=refuse, report=reports.append)
    store.refresh()
    store.refresh()
    assert store.content is None
    assert len(reports) == 2


# Protocol


def test_messages_carry_their_length() -> None:
    """PostgreSQL's framing: a length that counts itself, texts that end with a zero byte."""
    startup = startup_message("app", "db", "test")
    assert struct.unpack("!II", startup[:8]) == (len(startup), 196608)
    assert startup[8:].startswith(b"user\0app\0database\0db\0")
    assert startup.endswith(b"\0\0")
    assert query_message("BEGIN") == b"Q\0\0\0\x0aBEGIN\0"


def test_the_text_of_an_error_is_found() -> None:
    """ErrorResponse: fields with a letter each, M is the text."""
    assert error_text(b"SFATAL\0C08P01\0Mserver shutting down\0\0") == "server shutting down"
    assert error_text(b"") == "an error without a text"


def test_rows_are_read_with_their_names() -> None:
    """RowDescription has 18 bytes behind each name, DataRow a length before each value."""
    assert column_names(b"\0\2" + b"a\0" + bytes(18) + b"\xc3\xa9\0" + bytes(18)) == ["a", "é"]
    row = b"\0\3" + b"\0\0\0\1x" + b"\xff\xff\xff\xff" + b"\0\0\0\0"
    assert values(row) == ["x", None, ""]
