"""URLs, alone and in secrets: what consoles hand out works, the rest is named without a secret."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import ConfigurationError
from lambda_pg._credentials import Credentials
from lambda_pg._url import Url

CANARY = "canary-Pa55word"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param(
            "postgresql://postgres.abcdefghij:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres",
            Url(
                "aws-0-eu-central-1.pooler.supabase.com",
                6543,
                "postgres",
                "postgres.abcdefghij",
                "pw",
            ),
            id="supabase",
        ),
        pytest.param(
            "postgres://postgres.abcdefghij:pw@aws-0-eu-central-1.pooler.supabase.com:6543/postgres"
            "?sslmode=require&supa=base-pooler.x",
            Url(
                "aws-0-eu-central-1.pooler.supabase.com",
                6543,
                "postgres",
                "postgres.abcdefghij",
                "pw",
                "require",
            ),
            id="vercel-supabase",
        ),
        pytest.param(
            "postgresql://neondb_owner:npg_x@ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech"
            "/neondb?sslmode=require&channel_binding=require",
            Url(
                "ep-cool-darkness-123456-pooler.us-east-2.aws.neon.tech",
                None,
                "neondb",
                "neondb_owner",
                "npg_x",
                "require",
                "require",
            ),
            id="neon",
        ),
        pytest.param(
            "postgresql://me@app.c9akciq32.eu-west-1.rds.amazonaws.com:5432/app"
            "?options=-c%20statement_timeout%3D5000",
            Url(
                "app.c9akciq32.eu-west-1.rds.amazonaws.com",
                5432,
                "app",
                "me",
                options="-c statement_timeout=5000",
            ),
            id="rds-options",
        ),
        pytest.param(
            "  postgresql://me:p%40s%2Fs%25@[::1]:5433/my%20db\n",
            Url("::1", 5433, "my db", "me", "p@s/s%"),
            id="escapes-ipv6-line-end",
        ),
        pytest.param("postgres://localhost", Url("localhost"), id="shortest"),
    ],
)
def test_a_copied_url_is_understood(text: str, expected: Url) -> None:
    """Each form that a console or a tutorial shows gives its parts."""
    assert Url.parse(text) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (f"mysql://u:{CANARY}@h/d", "does not begin with postgresql://"),
        (f"u:{CANARY}@h/d", "does not begin with postgresql://"),
        (
            f"postgresql+psycopg://u:{CANARY}@h/d",
            r"postgresql://: drop \+psycopg, which is for SQLA",
        ),
        (f"postgres+asyncpg://u:{CANARY}@h/d", r"postgresql://: drop \+asyncpg, which is for SQLA"),
        (f"jdbc:postgresql://h/d?user=u&password={CANARY}", "drop jdbc:, which is for Java"),
        (f"postgresql://u:{CANARY}@/d", "names no host"),
        (f"postgresql://u:{CANARY}@h!/d", "names a host with a character"),
        (f"postgresql://u:{CANARY}@h1,h2/d", "names several hosts: write one"),
        (f"postgresql://u:{CANARY}@h1:5432,h2:5433/d", "names several hosts: write one"),
        (f"postgresql://u:{CANARY}@[::1]:5432,[::2]:5432/d", "names several hosts: write one"),
        (f"postgresql://u:{CANARY}@h/d?host=h1,h2", "names several hosts: write one"),
        (f"postgresql://u:{CANARY}@h/d?target_session_attrs=read-write", "several hosts write one"),
        ("postgresql:///d", "names no host, which is a Unix socket .* write a host's name"),
        ("postgresql:///d?host=/run/postgresql", "names a Unix socket: .* write a host's name"),
        (f"postgresql://u:{CANARY}@%2Frun%2Fpostgresql/d", "names a Unix socket: .*localhost"),
        (f"postgresql://u:{CANARY}@%40abstract/d", "names a Unix socket: .*localhost"),
        ("postgresql:///d?host=h", "has host: write it before the database's name"),
        (f"postgresql://h/d?user=u&password={CANARY}", "has password: write it before the host"),
        (f"postgresql://u:{CANARY}@h:{CANARY}/d", "its port is not a number"),
        (f"postgresql://u:{CANARY}@h:0/d", "has the port 0"),
        (f"postgresql://u:{CANARY}@h:65536/d", "its port is not a number"),
        (f"postgresql://u:{CANARY}#x@h/d", "write / \\? # "),
        (f"postgresql://u:1#{CANARY}@h/d", "its port|unescaped"),
        (f"postgresql://u@h/{CANARY}@h/d", "write / \\? # @ as %2F %3F %23 %40"),
        (f"postgresql://u:{CANARY}/x@h/d", "its port is not a number"),
        (f"postgresql://u:{CANARY}\n@h/d", "cannot be printed"),
        (f"postgresql://u:{CANARY}%ff@h/d", "a password whose percent-encoded bytes are not UTF-8"),
        (f"postgresql://u:{CANARY}%00@h/d", "a password with %00"),
        ("postgresql://u:[YOUR-PASSWORD]@h/d", "put the password there"),
        (f"postgresql://u:{CANARY}@h/d?sslmode={CANARY}", "a value of sslmode that is not one of"),
        (f"postgresql://u:{CANARY}@h/d?channel_binding=1", "a value of channel_binding"),
        (
            f"postgresql://u:{CANARY}@h/d?pgbouncer=true&connection_limit=1",
            "Prisma's connection_limit, pgbouncer.* remove them",
        ),
        (f"postgresql://u:{CANARY}@h/d?schema=public", "Prisma's schema"),
        (f"postgresql://u:{CANARY}@h/d?pool_timeout=3", "Prisma's pool_timeout"),
        (f"postgresql://u:{CANARY}@h/d?connect_timeout=3", "set LAMBDA_PG_CHECKOUT_TIMEOUT"),
        (f"postgresql://u:{CANARY}@h/d?sslrootcert=x", "set PGSSLROOTCERT to its file"),
        (f"postgresql://u:{CANARY}@h/d?sslrootcert=system", "remove it: the layer has the roots"),
        (f"postgresql://u:{CANARY}@h/d?{CANARY}=1", "has parameters that the layer does not know"),
    ],
)
def test_what_cannot_work_is_named(text: str, problem: str) -> None:
    """The error names the part that is wrong and what to do, never a part of the secret."""
    with pytest.raises(ValueError, match=problem) as caught:
        Url.parse(text)
    assert CANARY not in str(caught.value)
    assert caught.value.__cause__ is None
    assert caught.value.__suppress_context__ or caught.value.__context__ is None


def test_repr_masks_the_password() -> None:
    """A URL can be printed."""
    assert CANARY not in repr(Url.parse(f"postgresql://u:{CANARY}@h/d"))


PIECES = st.sampled_from(
    [
        *":/?#@&=%[]., \n\t\0é\udc80",
        *("%00", "%ff", "%zz", "::1", "sslmode", "options", "channel_binding", "require"),
        *("pgbouncer", "postgresql://", "h", "6543"),
    ]
)


@given(st.lists(PIECES | st.text(max_size=5), max_size=12).map("".join), st.booleans())
def test_any_text_gives_a_url_or_a_value_error(text: str, before: bool) -> None:
    """Parsing raises nothing but ValueError, and no text or repr holds the password."""
    password = f"{CANARY}{text}" if before else f"{text}{CANARY}"
    for url in (f"postgresql://u:{password}@h/d", f"postgresql://u:{CANARY}@{text}", text):
        try:
            shown = repr(Url.parse(url).password is None)
        except ValueError as error:
            shown = f"{error} {error!r}"
        assert CANARY not in shown


ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just(CANARY),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=3,
)
FIELDS = ["username", "password", "host", "port", "dbname", "url", "direct_url"]
URLS = st.sampled_from(["u:", "u", "", ":"]).flatmap(
    lambda user: PIECES.map(lambda piece: f"postgresql://{user}{CANARY}{piece}@h/d{piece}")
)
SECRETS = st.dictionaries(st.sampled_from(FIELDS), JSON | URLS | st.just(f"{CANARY}\0"))


@given(SECRETS.map(json.dumps) | JSON.map(json.dumps) | st.text(max_size=20), st.booleans())
def test_any_secret_gives_credentials_or_a_configuration_error(text: str, direct: bool) -> None:
    """A secret that cannot be used is named by its ARN and its field, never by its content."""
    problems: tuple[str, ...] = ()
    try:
        credentials = Credentials.from_secret(ARN, text, direct=direct)
        told = repr(dataclasses.replace(credentials, user="", host=None, dbname=None, options=None))
    except ConfigurationError as error:
        problems = error.problems
        told = f"{error} {error!r} {error.__cause__!r}"
    assert CANARY not in told
    for problem in problems:
        assert ARN in problem
        assert "JSON" in problem or any(repr(name) in problem for name in FIELDS)
