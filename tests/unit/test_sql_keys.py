"""Keys of `/sql`: who is found, how old a copy of the table may be, and what a bad table does."""

import hashlib
import hmac
import json
import random
import re
import subprocess
import sys
import traceback
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import Any

import boto3
import pytest
from lambda_pg._secrets import SecretError
from moto import mock_aws

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.functions.sql.sql_http.callers import KeyLimits, StageRules
from lambda_pg_cdk.functions.sql.sql_http.key_table import (
    LONGEST_ID,
    TableError,
    is_key_id,
    read_table,
)
from lambda_pg_cdk.functions.sql.sql_http.keys import (
    FAILED_PAUSE,
    OUTAGE,
    PAUSE,
    Keys,
    KeysUnavailableError,
    _digest,
    read_secret,
)
from lambda_pg_cdk.functions.sql.sql_http.statements import read_statements
from tests.support.clocks import FixedClock

LIFETIME = 60.0
SECRET = "kP3vQm0b5cX8yN1rT6uW9zA2dF4gH7jL-oSeIiE_RwB"
LIMITS = KeyLimits(rows=10_000, bytes=5_000_000, statements=100, request_bytes=1_000_000)
REGISTERED = read_statements(
    json.dumps({"one": {"sql": "SELECT 1", "reads": True}, "two": "SELECT 2"}), "test"
)
RULES = StageRules(frozenset(("reader", "writer", "caller")), "app", LIMITS, REGISTERED)


def key(secret: str = SECRET, **fields: Any) -> dict[str, Any]:
    """Write an entry of the table."""
    return {"hash": hashlib.sha256(secret.encode()).hexdigest(), "role": "reader", **fields}


def table(**entries: Any) -> str:
    """Write a table."""
    return json.dumps({"keys": entries})


class Bench:
    """Keys whose table, clock and Secrets Manager the test governs."""

    def __init__(self, text: str, lifetime: float = LIFETIME) -> None:
        """Read nothing yet."""
        self.text = text
        self.reads = 0
        self.clock = FixedClock()
        self.error: Exception | None = None
        self.keys = Keys(self.read, RULES, lifetime=lifetime, clock=self.clock)

    def read(self) -> str:
        """Answer as Secrets Manager does now."""
        self.reads += 1
        if self.error is not None:
            raise self.error
        return self.text

    def knows(self, key_id: str = "web", secret: str = SECRET) -> bool:
        """Tell whether the key is accepted."""
        return self.keys.find(key_id, secret) is not None


def test_a_key_is_found_with_its_role_and_limits() -> None:
    """A key has its own limits where they are below the stage's, and the stage's elsewhere."""
    bench = Bench(table(web=key(limits={"rows": 5, "bytes": 10**12}, retries=True)))
    caller = bench.keys.find("web", SECRET)
    assert caller is not None
    assert caller == ("web", "reader", LIMITS._replace(rows=5), None, True, None)


@pytest.mark.parametrize(
    ("key_id", "secret"),
    [
        *(("web", SECRET[:-1]), ("web", SECRET + "x"), ("web", ""), ("web", SECRET.lower())),
        *(("WEB", SECRET), ("", SECRET), ("other", SECRET), ("web\0", SECRET), ("web", "\ud800")),
    ],
)
def test_a_wrong_key_is_nobody(key_id: str, secret: str) -> None:
    """Each gets the same answer, and no exception."""
    assert not Bench(table(web=key())).knows(key_id, secret)


def test_a_key_ends_with_its_time() -> None:
    """It is valid until the moment that it names, also while the copy of the table is young."""
    bench = Bench(table(web=key(expires="1970-01-12T13:47:10+00:00")))  # clock's time + 30 s
    assert bench.knows()
    bench.clock.now += 29.9
    assert bench.knows()
    bench.clock.now += 0.2
    assert not bench.knows()


def test_every_refusal_does_the_same_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown, wrong, expired and revoked: as many hashes, comparisons and readings.

    None of the secrets was hashed before: whether its hash is remembered depends on it alone.
    """
    calls: list[str] = []

    def count(module: ModuleType, name: str) -> None:
        function = getattr(module, name)

        def counted(*arguments: Any) -> Any:
            calls.append(name)
            return function(*arguments)

        monkeypatch.setattr(module, name, counted)

    count(hashlib, "sha256")
    count(hmac, "compare_digest")
    work = {}
    entries = {"web": key(), "old": key(expires="1970-01-01T00:00:00+00:00")}
    for name, key_id, secret in (
        ("unknown", "nobody", SECRET),
        ("wrong", "web", "wrong"),
        ("expired", "old", SECRET),
        ("no id", "", ""),
    ):
        bench = Bench(table(**entries))
        bench.knows()
        bench.clock.now += PAUSE + 0.1
        reads = bench.reads
        calls.clear()
        _digest.cache_clear()
        assert not bench.knows(key_id, secret)
        work[name] = (tuple(calls), bench.reads - reads)
    assert set(work.values()) == {(("sha256", "compare_digest", "compare_digest"), 1)}


def test_a_revoked_key_ends_within_the_lifetime() -> None:
    """However often it is used in that time, in which a copy is read once."""
    bench = Bench(table(web=key(), other=key("o")))
    assert bench.knows()
    bench.text = table(other=key("o"))
    revoked_at = bench.clock.now
    while bench.knows():
        bench.clock.now += 0.5
    assert bench.clock.now - revoked_at <= LIFETIME
    assert bench.reads == 2
    assert bench.knows("other", "o")


def test_the_lifetime_counts_from_before_the_reading() -> None:
    """A revocation while the table is on its way is not missed for longer."""
    bench = Bench(table(web=key()))
    read = bench.read

    def slow() -> str:
        text = read()
        bench.clock.now += 2
        return text

    bench.keys = Keys(slow, RULES, lifetime=LIFETIME, clock=bench.clock)
    assert bench.knows()
    bench.clock.now += LIFETIME - 2
    assert bench.knows()
    assert bench.reads == 2


def test_a_thawed_environment_reads_the_table() -> None:
    """The wall clock has run on while the environment was frozen for an hour."""
    bench = Bench(table(web=key()))
    assert bench.knows()
    bench.text = table()
    bench.clock.now += 3600
    assert not bench.knows()


def test_a_clock_that_was_set_back_does_not_keep_a_copy() -> None:
    """Neither the copy nor the pause lasts until the clock has caught up."""
    bench = Bench(table(web=key()))
    assert bench.knows()
    bench.text = table()
    bench.clock.now -= 86_400
    assert not bench.knows()


def test_a_new_key_works_at_once() -> None:
    """An unknown id is looked up, as is a key that has a new secret."""
    bench = Bench(table(web=key("old")))
    assert bench.knows("web", "old")
    bench.text = table(web=key("new"), more=key())
    bench.clock.now += PAUSE
    assert bench.knows("more")
    assert bench.knows("web", "new")
    assert bench.reads == 2


def test_unknown_ids_cost_one_reading_a_second() -> None:
    """A thousand guesses in ten seconds read eleven times, while the right key is served."""
    bench = Bench(table(web=key()))
    bench.knows()
    for number in range(1000):
        assert not bench.knows(f"guess-{number}")
        assert bench.knows()
        bench.clock.now += 0.01
    assert bench.reads <= 11


PASSING = SecretError("no answer", passing=True)
REFUSED = SecretError("AccessDeniedException")


def test_an_outage_is_bridged_for_its_time_and_no_longer() -> None:
    """The old copy serves, and one request in ten seconds tries again; then 503."""
    bench = Bench(table(web=key()))
    assert bench.knows()
    bench.error = PASSING
    began, tries = bench.clock.now, bench.reads
    while bench.clock.now - began < LIFETIME + OUTAGE - 1:
        assert bench.knows()
        bench.clock.now += 1
    assert 0 < bench.reads - tries <= OUTAGE / FAILED_PAUSE + 1
    bench.clock.now += 1
    with pytest.raises(KeysUnavailableError, match="no answer") as caught:
        bench.knows()
    assert 0 < caught.value.retry_after <= FAILED_PAUSE
    bench.error = None
    bench.clock.now += FAILED_PAUSE
    assert bench.knows()


def test_a_refusal_by_secrets_manager_is_no_outage() -> None:
    """A secret that was deleted, or may not be read: its copy ends with its lifetime."""
    bench = Bench(table(web=key()))
    assert bench.knows()
    bench.error = REFUSED
    bench.clock.now += LIFETIME
    with pytest.raises(KeysUnavailableError, match="AccessDenied"):
        bench.knows()


def test_without_any_copy_secrets_manager_is_asked_once_a_second() -> None:
    """Other requests fail at once."""
    bench = Bench(table(web=key()))
    bench.error = PASSING
    for _ in range(55):
        with pytest.raises(KeysUnavailableError):
            bench.knows()
        bench.clock.now += 0.1
    assert 5 <= bench.reads <= 6
    bench.error = None
    bench.clock.now += PAUSE
    assert bench.knows()


def test_a_guess_during_an_outage_is_refused_as_ever() -> None:
    """An unknown id gets the same answer as a wrong secret."""
    bench = Bench(table(web=key()))
    assert bench.knows()
    bench.error = PASSING
    bench.clock.now += PAUSE
    assert not bench.knows("nobody")
    bench.clock.now += FAILED_PAUSE
    assert not bench.knows("web", "wrong")


def test_a_broken_table_leaves_the_old_copy(capsys: pytest.CaptureFixture[str]) -> None:
    """As an outage does, with the reason in the log and no part of the table."""
    bench = Bench(table(web=key()))
    assert bench.knows()
    bench.text = table(web=key())[:-3]
    bench.clock.now += LIFETIME
    assert bench.knows()
    log = capsys.readouterr().out
    assert json.loads(log) == {
        "level": "ERROR",
        "message": "keys",
        "reason": "the table of keys is not JSON: restore the secret's previous version "
        "(docs/operations.md)",
    }
    bench.clock.now += OUTAGE
    with pytest.raises(KeysUnavailableError, match="not JSON"):
        bench.knows()


WRONG: Mapping[str, tuple[Any, str]] = {
    "no hash": ({"role": "reader"}, "SHA-256"),
    "short": (key(hash="ab" * 31), "SHA-256"),
    "spaces": (key(hash="ab " * 21 + "a"), "SHA-256"),
    "a number": (key(hash=12), "SHA-256"),
    "the secret": (key(hash=SECRET), "SHA-256"),
    "empty": (key(""), "empty text"),
    "role": (key(role="admin"), r"'admin'; must be one of caller, reader, writer"),
    "no role": ({"hash": key()["hash"]}, "type NoneType, not shown here"),
    "a list": (key(role=["reader"]), "type list, not shown here"),
    "database": (key(database="other"), "'other'; must be app"),
    "typing error": (key(expire="2020-01-01T00:00:00+00:00"), r"it has unknown fields \(1\)"),
    "no zone": (key(expires="2030-01-01T00:00:00"), "with a zone"),
    "no time": (key(expires=5), "with a zone"),
    "statements": (key(statements="one"), "list of names"),
    "none": (key(statements=False), "list of names"),
    "free": (key(role="caller"), "caller needs statements"),
    "limit": (key(limits={"rows": 0}), "its limit rows is 0; must be a whole number above 0"),
    "true": (key(limits={"rows": True}), "above 0"),
    "which": (key(limits={"row": 1}), "rows, bytes"),
    "retries": (key(retries=1), "retries"),
    "null": (None, "must be an object"),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_entry_is_refused_and_the_others_go_on(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log has the key's id and what is wrong, once for as long as it is the same."""
    entry, message = WRONG[name]
    bench = Bench(table(web=entry, other=key("o")))
    assert not bench.knows()
    assert not bench.knows("web", "")
    assert bench.knows("other", "o")
    bench.clock.now += LIFETIME
    assert bench.knows("other", "o")
    (line,) = capsys.readouterr().out.splitlines()
    reason = json.loads(line)["reason"]
    assert re.search(message, reason), reason
    assert reason.startswith("key web cannot be used: ")
    assert SECRET not in line


def test_a_secret_in_the_place_of_an_id_is_not_logged() -> None:
    """A secret is longer than an id may be."""
    assert len(SECRET) > LONGEST_ID
    found = read_table(table(**{SECRET: key(), "web": key(role=SECRET)}), RULES)
    assert not found.entries
    assert len(found.problems) == 2
    assert SECRET not in repr(found.problems)


def test_a_key_has_only_the_statements_it_names() -> None:
    """All for true, none for an empty list; a missing one is reported and adds nothing."""
    found = read_table(
        table(
            every=key(statements=True),
            none=key(statements=[]),
            one=key(statements=["one", "gone"]),
        ),
        RULES,
    )
    allowed = {
        name: [
            entry.caller.statements is None or entry.caller.statements.allows(query)
            for query in ("SELECT 1", "SELECT 2", "SELECT 3")
        ]
        for name, entry in found.entries.items()
    }
    assert allowed == {
        "every": [True, True, False],
        "none": [False, False, False],
        "one": [True, False, False],
    }
    (problem,) = found.problems
    assert "the file of sql.statements does not have ('gone'): add them" in problem


VALUES: tuple[Any, ...] = (
    *(None, True, 0, -1, 1e400, "", "x", [], {}, [[]], "\ud800", 10**30, {"a": {}}),
)


def test_any_entry_is_read_or_refused() -> None:
    """No damage to an entry raises an error."""
    chance = random.Random(17)  # noqa: S311 - the same in each run
    fields = key(limits={"rows": 1}, statements=["one"], expires="2030-01-01T00:00+00:00")
    for _ in range(2000):
        names = chance.choices([*fields, "more"], k=chance.randint(1, 3))
        entry = fields | {name: chance.choice(VALUES) for name in names}
        found = read_table(table(**{chance.choice(["web", "", "\0", "a b"]): entry}), RULES)
        assert len(found.entries) + len(found.problems) >= 1
        assert all(is_key_id(name) for name in found.entries)


def test_any_text_is_read_or_refused() -> None:
    """No damage to the table's text raises an error other than TableError."""
    chance = random.Random(17)  # noqa: S311 - the same in each run
    whole = table(web=key(limits={"rows": 1}), other=key("o"))
    for _ in range(2000):
        at = chance.randrange(len(whole))
        text = whole[:at] + chance.choice('{}[]",:0\0') + whole[at + chance.randint(0, 2) :]
        with suppress(TableError):
            found = read_table(text, RULES)
            assert all(is_key_id(name) for name in found.entries)


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", '{"keys": []}', "[" * 100_000, '{"keys": ' + "1" * 10_000 + "}", SECRET],
    ids=range(7),
)
def test_what_is_no_table_is_an_error_without_its_text(text: str) -> None:
    """Neither the message nor the traceback's causes have a part of it."""
    with pytest.raises(TableError) as caught:
        read_table(text, RULES)
    shown = "".join(traceback.format_exception(caught.value))
    assert not text or text not in shown
    assert "JSONDecodeError" not in shown


def test_the_table_is_read_from_secrets_manager() -> None:
    """By the layer's own client; what it does not find is an error that names the secret."""
    with mock_aws():
        client = boto3.client("secretsmanager", region_name="us-east-1")
        arn = client.create_secret(Name="keys", SecretString=table(web=key()))["ARN"]
        keys = Keys(lambda: read_secret(arn), RULES, lifetime=LIFETIME)
        assert keys.find("web", SECRET) is not None
        gone = Keys(lambda: read_secret(arn.replace("keys", "none")), RULES, lifetime=LIFETIME)
        with pytest.raises(KeysUnavailableError, match="none"):
            gone.find("web", SECRET)


@pytest.mark.skipif(sys.platform != "linux", reason="other systems name sha256sum differently")
def test_a_key_can_be_made_by_the_documented_commands() -> None:
    """The page's commands give a secret of 256 bits in the characters of a URL, and its hash."""
    page = (PROJECT / "docs" / "operations.md").read_text()
    (commands,) = re.findall(r"(?m)^    (SECRET=.*)\n    (printf .*sha256sum)$", page)
    script = "\n".join([*commands, 'echo "$SECRET"'])
    run = subprocess.run(["bash", "-c", script], capture_output=True, check=True, text=True)
    digest, _, secret = run.stdout.split()
    assert re.fullmatch(r"[\w-]{43}", secret)
    assert Bench(table(web=key() | {"hash": digest})).knows("web", secret)


def test_200_keys_fit_into_one_secret() -> None:
    """With a role, limits, an expiry and a note each."""
    fields = {
        "limits": {"rows": 10_000, "bytes": 5_000_000},
        "expires": "2027-12-01T00:00:00+00:00",
        "created": "2026-12-01T00:00:00+00:00",
        "note": "web of the shop in Europe",
    }
    text = table(**{f"web-{number}": key(str(number), **fields) for number in range(200)})
    assert len(text.encode()) < 65_536
    assert len(read_table(text, RULES).entries) == 200
