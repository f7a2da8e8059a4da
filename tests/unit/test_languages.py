"""PostgreSQL in other languages than English, and a process in another one."""

import gettext
import json
import os
import re
import socket
import subprocess
import sys
from pathlib import Path

import psycopg
import pytest
from lambda_pg._failures import Failure, classify_connect, classify_statement, is_unexplained
from lambda_pg._languages import EXHAUSTED

from tests.support.failures import AT, pooler
from tests.support.locales import make_locale

MESSAGES = (
    "sorry, too many clients already",
    "remaining connection slots are reserved for non-replication superuser connections",
    "remaining connection slots are reserved for roles with the %s attribute",
    'remaining connection slots are reserved for roles with privileges of the "%s" role',
    'too many connections for role "%s"',
    'too many connections for database "%s"',
)
"""All that PostgreSQL 13 to 18 says to a client with the SQLSTATE 53300."""

TRANSLATIONS: dict[str, list[str]] = json.loads(
    Path(__file__).with_name("catalogues.json").read_text()
)
"""Of these, all that is in the catalogues of Debian's packages of 13, 15, 17 and 18."""

LAYER = Path(__file__).parents[2] / "layer" / "python"

EACH = [
    pytest.param(text.replace("%s", "app"), id=f"{language}-{number}")
    for language, texts in TRANSLATIONS.items()
    for number, text in enumerate(texts)
]


@pytest.mark.parametrize("text", EACH)
def test_exhaustion_is_known_in_every_language(text: str) -> None:
    """Of a connect without an SQLSTATE, and of a pooler that passes on the text only."""
    refused = psycopg.OperationalError(f"{AT}致命的エラー:  {text}")
    assert classify_connect(refused) is Failure.NOT_RUN
    assert classify_statement(pooler("08P01", text), broken=True) is Failure.NOT_RUN
    assert classify_statement(pooler("P0001", text), broken=True) is Failure.FINAL


def test_no_language_is_without_a_message_for_full_slots() -> None:
    """Each one that is translated at all has at least three of the six messages."""
    assert len(TRANSLATIONS) == 16
    assert min(len(texts) for texts in TRANSLATIONS.values()) >= 3


@pytest.mark.parametrize("pattern", EXHAUSTED)
def test_no_pattern_is_without_its_translation(pattern: str) -> None:
    """What the table knows is in a catalogue."""
    texts = [text.replace("%s", "app") for texts in TRANSLATIONS.values() for text in texts]
    assert any(re.search(pattern, text) for text in texts)


def test_the_catalogues_of_this_machine_say_nothing_else() -> None:
    """An installed server may be newer than the table."""
    catalogues = [*Path("/usr/share/locale").glob("*/LC_MESSAGES/postgres-*.mo")]
    if not catalogues:
        pytest.skip("no installed PostgreSQL has message catalogues in /usr/share/locale")
    for path in catalogues:
        with path.open("rb") as file:
            catalogue = gettext.GNUTranslations(file)
        for text in (catalogue.gettext(message) for message in MESSAGES):
            if text not in MESSAGES:
                assert re.search("|".join(EXHAUSTED), text.replace("%s", "app")), (path, text)


@pytest.mark.parametrize(
    ("sqlstate", "expected"),
    [
        ("28P01", Failure.LOGIN_REFUSED),
        ("53300", Failure.NOT_RUN),
        ("53200", Failure.NOT_RUN),
        ("57P01", Failure.NOT_RUN),
        ("57P02", Failure.NOT_RUN),
        ("57P03", Failure.NOT_RUN),
        ("57P04", Failure.FINAL),
        ("3D000", Failure.FINAL),
        ("42501", Failure.FINAL),
        ("28000", Failure.FINAL),
    ],
)
def test_the_sqlstate_of_a_connect_decides_whatever_the_text(
    sqlstate: str, expected: Failure
) -> None:
    """Nobody has to read the language."""
    refused = psycopg.OperationalError(f"{AT}FATAL:  {sqlstate}: なにか")
    refused.sqlstate = sqlstate
    assert classify_connect(refused) is expected


@pytest.mark.parametrize(
    ("sqlstate", "text", "expected"),
    [
        (None, f"{AT}FATAL:  Passwort-Authentifizierung fehlgeschlagen", True),
        (None, f"{AT}ВАЖНО:  пользователь не прошёл проверку подлинности", True),
        ("28000", f"{AT}FATAL:  28000: PAM-Authentifizierung fehlgeschlagen", True),
        ("08P01", f"{AT}FATAL:  08P01: something of a pooler that nobody has seen", True),
        ("3D000", f"{AT}FATAL:  3D000: Datenbank »nope« existiert nicht", False),
        ("28P01", f"{AT}FATAL:  28P01: Passwort-Authentifizierung fehlgeschlagen", False),
        (None, f'{AT}FATAL:  password authentication failed for user "app"', False),
        (None, f"{AT}FATAL:  sorry, too many clients already", False),
        (None, f"{AT}SSL error: certificate verify failed", False),
        (None, "connection is bad: no such file or directory", False),
    ],
)
def test_what_a_login_may_have_met_is_told_apart_from_what_libpq_says(
    sqlstate: str | None, text: str, expected: bool
) -> None:
    """Only a server's answer that nothing else explains may be about the credentials."""
    refused = psycopg.OperationalError(text)
    refused.sqlstate = sqlstate
    assert is_unexplained(refused) is expected


REFUSED_THERE = """
import locale, sys
locale.setlocale(locale.LC_ALL, "de_DE.UTF-8")
import psycopg
from lambda_pg._failures import classify_connect
try:
    psycopg.connect(f"host=127.0.0.1 port={sys.argv[1]} connect_timeout=5")
except psycopg.OperationalError as error:
    print(classify_connect(error).name, error)
"""


def test_a_process_in_another_language(tmp_path: Path) -> None:
    """The system's words for a refused connection, which libpq passes on, are the process' own."""
    make_locale(tmp_path, "de_DE", catalogue="libc")
    language = {
        "LOCPATH": str(tmp_path),
        "LC_ALL": "de_DE.UTF-8",
        "LANGUAGE": "",
        "PYTHONPATH": str(LAYER),
    }
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # and nobody listens
        said = subprocess.run(
            [sys.executable, "-c", REFUSED_THERE, str(unused.getsockname()[1])],
            env=os.environ | language,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    assert "Verbindungsaufbau abgelehnt" in said
    assert said.startswith("NOT_RUN ")
