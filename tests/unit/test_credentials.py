"""Credentials: cached, fetched once at a time, renewed by refusals, kept through outages."""

import json
import multiprocessing
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg import ConfigurationError, CredentialsError, Settings
from lambda_pg._credentials import (
    LIFETIME,
    PAUSE,
    REFUSED_PAUSE,
    CredentialCache,
    Credentials,
    SecretsUnavailableError,
)
from lambda_pg._secrets import Fetch, SecretError

from tests.support.canary import CANARY, assert_nowhere
from tests.support.clocks import FixedClock
from tests.support.servers import SecretsService
from tests.support.waiting import wait_until

DOWN = "http://127.0.0.1:1"
"""Nothing listens on port 1: a service that is down refuses the connection."""


class Fetches:
    """The layer's own fetches, counted; a test may hold them back."""

    def __init__(self) -> None:
        """Let every fetch through at once."""
        self.stages: list[str] = []
        self.let_through = threading.Event()
        self.let_through.set()

    def __call__(self, arn: str, stage: str) -> Fetch:
        """Begin a fetch."""
        self.stages.append(stage)
        fetch = HeldBack(arn, stage, self.let_through)
        fetch.start()
        return fetch


class HeldBack(Fetch):
    """A fetch that waits for an event before it asks, as one of a slow service does."""

    def __init__(self, arn: str, stage: str, let_through: threading.Event) -> None:
        """Take what Fetch takes, and the event."""
        super().__init__(arn, stage)
        self._let_through = let_through

    def run(self) -> None:
        """Wait, then ask."""
        self._let_through.wait(10)
        super().run()


@pytest.fixture(scope="module")
def service() -> Iterator[SecretsService]:
    """A Secrets Manager on loopback."""
    service = SecretsService()
    yield service
    service.stop()


@pytest.fixture
def environment(service: SecretsService, monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The environment of a function that may read the service."""
    for name, value in service.environment.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def login(password: str, **fields: str) -> dict[str, str]:
    """Write a secret as RDS does."""
    return {"username": "app", "password": password, "port": "5432"} | fields


@pytest.fixture
def arn(service: SecretsService, environment: pytest.MonkeyPatch) -> str:
    """A secret that was never rotated."""
    return service.create(login("first"))


@pytest.fixture
def clock() -> FixedClock:
    """A clock at an arbitrary time."""
    return FixedClock()


@pytest.fixture
def fetches() -> Iterator[Fetches]:
    """A count of the fetches; what is held back is let through at the end."""
    fetches = Fetches()
    yield fetches
    fetches.let_through.set()


@pytest.fixture
def cache(arn: str, fetches: Fetches, clock: FixedClock) -> CredentialCache:
    """A cache over the secret that knows nothing yet."""
    return CredentialCache(Settings(secret_arn=arn), fetches, clock)


# --- the copy and its life


def test_a_secret_is_fetched_once_in_its_life(
    cache: CredentialCache, fetches: Fetches, clock: FixedClock
) -> None:
    """Within its life a secret is fetched once; after it, again."""
    credentials = cache.get(3)
    assert (credentials.user, credentials.password, credentials.port) == ("app", "first", 5432)
    clock.now += LIFETIME * 0.8 - 1
    assert cache.get(3) is credentials
    assert len(fetches.stages) == 1
    clock.now += LIFETIME * 0.2 + 1
    cache.get(3)
    assert fetches.stages == ["AWSCURRENT", "AWSCURRENT"]
    assert cache.refreshes == 2


def test_a_fleets_copies_do_not_expire_together(clock: FixedClock) -> None:
    """The life of a copy is between four fifths and the whole of the lifetime, and never equal."""
    lives = set()
    for _ in range(50):
        cache = CredentialCache(Settings(user="app", password="p"), clock=clock)
        cache.get(3)
        lives.add(cache.fresh_until - clock.now)
    assert all(LIFETIME * 0.8 <= life <= LIFETIME for life in lives)
    assert len(lives) > 40


def test_an_expired_copy_outlives_an_outage(
    cache: CredentialCache, fetches: Fetches, clock: FixedClock, environment: pytest.MonkeyPatch
) -> None:
    """While the service is down the old copy is used, and the next look comes after a pause."""
    old = cache.get(3)
    environment.setenv("AWS_ENDPOINT_URL", DOWN)
    clock.now += LIFETIME
    assert cache.get(3) is old
    clock.now += PAUSE - 1
    assert cache.get(3) is old
    assert len(fetches.stages) == 2
    clock.now += 1
    assert cache.get(3) is old
    assert len(fetches.stages) == 3
    assert cache.refreshes == 1


def test_what_changed_in_an_outage_is_seen_after_it(
    cache: CredentialCache,
    service: SecretsService,
    arn: str,
    clock: FixedClock,
    environment: pytest.MonkeyPatch,
) -> None:
    """The first look after an outage brings the version of now."""
    cache.get(3)
    environment.setenv("AWS_ENDPOINT_URL", DOWN)
    clock.now += LIFETIME
    cache.get(3)
    service.put(arn, login("second"))
    environment.setenv("AWS_ENDPOINT_URL", service.url)
    clock.now += PAUSE
    assert cache.get(3).password == "second"


def test_a_malformed_new_version_keeps_the_old_copy(
    cache: CredentialCache, service: SecretsService, arn: str, fetches: Fetches, clock: FixedClock
) -> None:
    """A slip in the secret does not take a working function down; its repair is seen soon."""
    old = cache.get(3)
    service.put(arn, {"user": "app"})
    clock.now += LIFETIME
    assert cache.get(3) is old
    service.put(arn, login("third"))
    assert cache.get(3) is old
    clock.now += PAUSE
    assert cache.get(3).password == "third"


def test_without_a_copy_an_outage_is_an_error(
    cache: CredentialCache, service: SecretsService, environment: pytest.MonkeyPatch
) -> None:
    """The first fetch cannot be replaced by anything; the next get asks again."""
    environment.setenv("AWS_ENDPOINT_URL", DOWN)
    with pytest.raises(SecretsUnavailableError):
        cache.get(3)
    environment.setenv("AWS_ENDPOINT_URL", service.url)
    assert cache.get(3).password == "first"


def test_a_secret_that_is_not_there_is_final(
    service: SecretsService, environment: pytest.MonkeyPatch, arn: str
) -> None:
    """A refusal by Secrets Manager names the secret and the reason; waiting would not mend it."""
    other = arn.replace("secret:", "secret:other-")
    with pytest.raises(CredentialsError, match="ResourceNotFoundException") as caught:
        CredentialCache(Settings(secret_arn=other)).get(3)
    assert other in str(caught.value)
    assert not isinstance(caught.value, SecretsUnavailableError)
    assert isinstance(caught.value.__cause__, SecretError)


def test_forgetting_is_knowing_nothing(
    cache: CredentialCache,
    service: SecretsService,
    arn: str,
    fetches: Fetches,
    environment: pytest.MonkeyPatch,
) -> None:
    """After forget() the next get asks again, and no copy bridges an outage."""
    cache.get(3)
    service.put(arn, login("second"))
    cache.forget()
    assert cache.fresh_until == 0
    environment.setenv("AWS_ENDPOINT_URL", DOWN)
    with pytest.raises(SecretsUnavailableError):
        cache.get(0.2)
    environment.setenv("AWS_ENDPOINT_URL", service.url)
    assert cache.get(3).password == "second"
    assert len(fetches.stages) == 3


def test_what_was_opened_before_forgetting_is_not_current_after_it(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """A restored environment does not take a connection of before the snapshot for its own."""
    cache.get(3)
    before = cache.generation
    cache.forget()
    cache.get(3)
    assert cache.generation != before


# --- one fetch at a time


def test_threads_share_one_fetch(cache: CredentialCache, fetches: Fetches) -> None:
    """Several threads that need the credentials at once wait for one fetch."""
    fetches.let_through.clear()
    with ThreadPoolExecutor(8) as threads:
        results = [threads.submit(cache.get, 5) for _ in range(8)]
        wait_until(lambda: len(fetches.stages) == 1)
        fetches.let_through.set()
        assert {result.result().password for result in results} == {"first"}
    assert len(fetches.stages) == 1


def test_each_thread_waits_at_most_its_own_time(cache: CredentialCache, fetches: Fetches) -> None:
    """Neither the fetch nor another thread's holds up a caller for longer than it allows."""
    fetches.let_through.clear()

    def waited(timeout: float) -> float:
        began = time.monotonic()
        with pytest.raises(SecretsUnavailableError, match="did not answer"):
            cache.get(timeout)
        return time.monotonic() - began

    with ThreadPoolExecutor(2) as threads:
        longer = threads.submit(waited, 1.0)
        wait_until(lambda: len(fetches.stages) == 1)
        assert 0.2 <= threads.submit(waited, 0.2).result() < 0.8
        assert 1.0 <= longer.result() < 3


def test_nobody_waits_for_a_look_that_an_old_copy_can_bridge(
    cache: CredentialCache, fetches: Fetches, clock: FixedClock
) -> None:
    """One thread looks for a newer version in a third of its time; the others use the old copy."""
    old = cache.get(3)
    clock.now += LIFETIME
    fetches.let_through.clear()
    with ThreadPoolExecutor(1) as threads:
        looking = threads.submit(cache.get, 1.8)
        wait_until(lambda: len(fetches.stages) == 2)
        assert cache.get(0.01) is old
        began = time.monotonic()
        assert looking.result() is old
        assert time.monotonic() - began < 1.6


def test_forgetting_during_a_fetch_harms_nobody(cache: CredentialCache, fetches: Fetches) -> None:
    """Who waits for the fetch gets it, and the next get works."""
    fetches.let_through.clear()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cache.get, 5)
        wait_until(lambda: len(fetches.stages) == 1)
        cache.forget()
        fetches.let_through.set()
        assert waiting.result().password == "first"
    assert cache.get(3).password == "first"


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")  # Python 3.12, of threads
def test_a_child_forked_during_a_fetch_can_fetch(
    cache: CredentialCache, fetches: Fetches, arn: str
) -> None:
    """The lock that a thread of the parent holds is not left locked in the child."""
    fetches.let_through.clear()
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(cache.get, 5)
        wait_until(lambda: len(fetches.stages) == 1)

        def child() -> None:
            cache._start_fetch = Fetches()  # the parent's event is nobody's to set here
            theirs.send(cache.get(3).password)

        process = context.Process(target=child)
        process.start()
        try:
            assert ours.poll(10)
            assert ours.recv() == "first"
        finally:
            process.kill()
            process.join()
            fetches.let_through.set()
        waiting.result()


# --- a refused login


def test_a_refusal_after_a_rotation_brings_the_new_version(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """The copy is not trusted further when the database does not take it."""
    old = cache.get(3)
    service.put(arn, login("second"))
    clock.now += REFUSED_PAUSE
    new = cache.after_refusal(old, 3)
    assert new is not None
    assert new.password == "second"
    assert cache.get(3) is new


def test_a_refusal_of_the_version_of_now_brings_the_previous_one_once(
    cache: CredentialCache, service: SecretsService, arn: str, fetches: Fetches, clock: FixedClock
) -> None:
    """A pooler may not know the new password yet: the old one is tried, and not for ever."""
    service.put(arn, login("second"))
    current = cache.get(3)
    clock.now += REFUSED_PAUSE
    previous = cache.after_refusal(current, 3)
    assert previous is not None
    assert previous.password == "first"
    assert fetches.stages[-1] == "AWSPREVIOUS"
    assert cache.after_refusal(previous, 3) is None
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(current, 3) is None
    clock.now += PAUSE
    assert cache.after_refusal(current, 3) == previous


def test_a_secret_that_was_never_rotated_has_nothing_to_try(
    cache: CredentialCache, fetches: Fetches, clock: FixedClock
) -> None:
    """When the current version is refused and there is no other, the caller hears it."""
    current = cache.get(3)
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(current, 3) is None
    assert fetches.stages == ["AWSCURRENT", "AWSCURRENT", "AWSPREVIOUS"]


def test_a_previous_version_that_says_the_same_is_nothing_to_try(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """A new version with the old content changes nothing for a login that is refused."""
    service.put(arn, login("first"))
    current = cache.get(3)
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(current, 3) is None


def test_refusals_do_not_ask_more_often_than_the_pause(
    cache: CredentialCache, fetches: Fetches, clock: FixedClock
) -> None:
    """A fleet whose logins are refused does not hammer Secrets Manager."""
    current = cache.get(3)
    clock.now += REFUSED_PAUSE
    for _ in range(20):
        cache.after_refusal(current, 3)
        clock.now += REFUSED_PAUSE / 10
    assert fetches.stages.count("AWSCURRENT") == 1 + 2
    assert fetches.stages.count("AWSPREVIOUS") == 1


def test_a_refusal_that_another_thread_has_answered_asks_nobody(
    cache: CredentialCache, service: SecretsService, arn: str, fetches: Fetches, clock: FixedClock
) -> None:
    """Who comes second with the same stale login gets what the first one has fetched."""
    old = cache.get(3)
    service.put(arn, login("second"))
    clock.now += REFUSED_PAUSE
    new = cache.after_refusal(old, 3)
    assert cache.after_refusal(old, 3) is new
    assert len(fetches.stages) == 2


def test_an_accepted_previous_version_is_used_for_a_while(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """What a login has shown to be right is used, until the pause ends and the new one is tried."""
    service.put(arn, login("second"))
    current = cache.get(3)
    clock.now += REFUSED_PAUSE
    previous = cache.after_refusal(current, 3)
    assert previous is not None
    cache.accepted(previous)
    assert cache.get(3) is previous
    clock.now += PAUSE
    assert cache.get(3).password == "second"


def test_an_accepted_previous_version_that_is_refused_later_brings_the_new_one(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """Once the pooler has learnt the new password, the next refusal already leads to it."""
    service.put(arn, login("second"))
    current = cache.get(3)
    clock.now += REFUSED_PAUSE
    previous = cache.after_refusal(current, 3)
    assert previous is not None
    cache.accepted(previous)
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(previous, 3) == current
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(current, 3) is None


def test_credentials_without_a_secret_cannot_be_renewed(clock: FixedClock) -> None:
    """A URL's login that is refused stays refused: nothing is asked."""
    cache = CredentialCache(Settings(user="app", password="p"), clock=clock)
    assert cache.after_refusal(cache.get(3), 3) is None


def test_an_outage_during_a_refusal_is_an_outage(
    cache: CredentialCache, clock: FixedClock, environment: pytest.MonkeyPatch
) -> None:
    """When nobody can say whether there is a new version, that is the error, and a passing one."""
    old = cache.get(3)
    environment.setenv("AWS_ENDPOINT_URL", DOWN)
    clock.now += REFUSED_PAUSE
    with pytest.raises(SecretsUnavailableError):
        cache.after_refusal(old, 3)


# --- what was opened under older credentials


def test_a_changed_secret_starts_a_new_generation(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """Only a change of content counts: connections of before it are to be replaced."""
    cache.get(3)
    first = cache.generation
    clock.now += LIFETIME
    cache.get(3)
    assert cache.generation == first
    service.put(arn, login("second"))
    clock.now += LIFETIME
    cache.get(3)
    assert cache.generation == first + 1


IAM = Settings(auth="iam", host="db.example", user="app", region="us-east-1")


def test_a_new_token_replaces_no_connection(
    clock: FixedClock, environment: pytest.MonkeyPatch, service: SecretsService
) -> None:
    """IAM tokens matter at a connect only; each is another one, in the same generation."""
    made = iter(["token-1", "token-2"])
    environment.setattr("lambda_pg._credentials.auth_token", lambda _: next(made))
    cache = CredentialCache(IAM, clock=clock)
    assert cache.get(3) == Credentials("app", "token-1")
    first = cache.generation
    clock.now += LIFETIME
    assert cache.get(3) == Credentials("app", "token-2")
    assert (cache.generation, cache.refreshes) == (first, 2)


def test_a_refused_token_is_made_anew(clock: FixedClock, environment: pytest.MonkeyPatch) -> None:
    """A token of keys that were changed meanwhile is replaced; there is no previous one."""
    made = iter(["token-1", "token-2", "token-2"])
    environment.setattr("lambda_pg._credentials.auth_token", lambda _: next(made))
    cache = CredentialCache(IAM, clock=clock)
    refused = cache.get(3)
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(refused, 3) == Credentials("app", "token-2")
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(Credentials("app", "token-2"), 3) is None


def test_a_refused_token_is_made_anew_also_by_a_clock_that_was_set_back(
    clock: FixedClock, environment: pytest.MonkeyPatch
) -> None:
    """Else every login would be refused until the clock shows again what it once showed."""
    made = iter(["token-1", "token-2"])
    environment.setattr("lambda_pg._credentials.auth_token", lambda _: next(made))
    cache = CredentialCache(IAM, clock=clock)
    refused = cache.get(3)
    clock.now -= 3600
    assert cache.after_refusal(refused, 3) == Credentials("app", "token-2")


def test_a_token_without_keys_and_boto3_is_explained(
    environment: pytest.MonkeyPatch,
) -> None:
    """Where boto3 is needed and missing, the error says what to install or to set."""
    environment.delenv("AWS_ACCESS_KEY_ID")
    environment.setitem(sys.modules, "boto3", None)
    with pytest.raises(CredentialsError, match="pip install boto3"):
        CredentialCache(IAM).get(3)


# --- what a secret may hold

ARN = "arn:aws:secretsmanager:us-east-1:000000000000:secret:app"


def read(document: object, *, direct: bool = False) -> Credentials:
    """Read a secret with this content."""
    return Credentials.from_secret(ARN, json.dumps(document), direct=direct)


def test_a_secret_of_rds_names_the_endpoint_too() -> None:
    """RDS writes host, port and dbname beside user and password; more fields do no harm."""
    secret = login(CANARY, host="db.example", dbname="app", engine="postgres")
    assert read(secret | {"port": 6543}) == Credentials("app", CANARY, "db.example", 6543, "app")
    assert read({"username": "app", "password": CANARY}) == Credentials("app", CANARY)


def test_a_secret_may_hold_urls() -> None:
    """`url` is the pooler's address, `direct_url` the database's own, both with a login."""
    password = "p@ss:/?#"
    secret = {
        "url": f"postgresql://app:{quote(password, safe='')}@pooler.example:6543/app",
        "direct_url": "postgresql://owner:o@db.example/app?options=-csearch_path%3Dx",
    }
    assert read(secret) == Credentials("app", password, "pooler.example", 6543, "app")
    assert read(secret, direct=True) == Credentials(
        "owner", "o", "db.example", None, "app", "-csearch_path=x"
    )


def test_a_secrets_url_keeps_its_channel_binding() -> None:
    """Neon's URL asks for it: a man in the middle could not answer for the server."""
    url = "postgresql://app:p@ep-a-1-pooler.aws.neon.tech/app?sslmode=require"
    assert read({"url": f"{url}&channel_binding=require"}).channel_binding == "require"
    assert read({"url": url}).channel_binding is None


def test_a_direct_url_may_stand_beside_a_secret_of_rds() -> None:
    """The fields say how to reach the pooler, `direct_url` how to reach the database."""
    secret = login("first", host="pooler.example", direct_url="postgresql://owner:o@db.example/app")
    assert read(secret) == Credentials("app", "first", "pooler.example", 5432)
    assert read(secret, direct=True) == Credentials("owner", "o", "db.example", None, "app")


def test_a_url_beside_the_fields_of_rds_goes_before_them() -> None:
    """`url` says everything; a migration never takes the fields for its direct address."""
    secret = login("first", url="postgresql://app:second@pooler.example/app")
    assert read(secret).password == "second"
    with pytest.raises(ConfigurationError, match="direct_url"):
        read(secret, direct=True)


MALFORMED = [
    ("username", {"password": CANARY}),
    ("username", {"username": "", "password": CANARY}),
    ("username", {"username": ["app"], "password": CANARY}),
    ("password", {"username": "app"}),
    ("password", {"username": "app", "password": None}),
    ("password", {"username": "app", "password": ""}),
    ("password", {"username": "app", "password": f"{CANARY}\0"}),
    ("password", {"username": "app", "password": f"{CANARY}\ud800"}),
    ("username", {"username": f"{CANARY}\ud800", "password": "p"}),
    ("host", login(CANARY) | {"host": f"{CANARY}\udfff"}),
    ("dbname", login(CANARY) | {"dbname": f"{CANARY}\udc80"}),
    ("'url'", {"url": f"postgresql://app:{CANARY}\ud800@db.example/app"}),
    ("'url'", {"url": f"postgresql://app:{CANARY}%ED%A0%80@db.example/app"}),
    ("host", login(CANARY) | {"host": 5}),
    ("host", login(CANARY) | {"host": ""}),
    ("'host' that names several hosts", login(CANARY) | {"host": "db1.example,db2.example"}),
    ("'host' that names a Unix socket", login(CANARY) | {"host": "/run/postgresql"}),
    ("dbname", login(CANARY) | {"dbname": {"name": "app"}}),
    ("port", login(CANARY) | {"port": CANARY}),
    ("port", login(CANARY) | {"port": 0}),
    ("port", login(CANARY) | {"port": 65536}),
    ("port", login(CANARY) | {"port": True}),
    ("port", login(CANARY) | {"port": 5432.0}),
    ("port", login(CANARY) | {"port": "٥٤٣٢"}),
    ("'url'", {"url": 5}),
    ("'url'", {"url": f"mysql://app:{CANARY}@db.example/app"}),
    ("'url'", {"url": f"postgresql://app:{CANARY}@db.example:port/app"}),
    ("'url'", {"url": "postgresql://db.example/app"}),
    ("'url'", {"url": "postgresql://app@db.example/app"}),
    ("'url'", {"direct_url": f"postgresql://app:{CANARY}@db.example/app"}),
]


@pytest.mark.parametrize(("name", "document"), MALFORMED)
def test_a_malformed_field_is_named_and_not_shown(name: str, document: object) -> None:
    """Each field that cannot be what it should is an error that names it, never its content."""
    with pytest.raises(ConfigurationError, match=name) as caught:
        read(document)
    assert ARN in str(caught.value)
    assert_nowhere(caught.value)


def test_every_malformed_field_is_reported_at_once() -> None:
    """Four wrong fields give one error with four sentences."""
    with pytest.raises(ConfigurationError) as caught:
        read({"username": 1, "password": 2, "host": 3, "dbname": 4, "port": "x"})
    assert len(caught.value.problems) == 5


@pytest.mark.parametrize("text", [CANARY, f'["{CANARY}"]', f'"{CANARY}"', "", "5", "[" * 60_000])
def test_a_secret_that_is_no_object_is_an_error_without_its_text(text: str) -> None:
    """A secret as plain text, as other applications keep them, is named and not shown."""
    with pytest.raises(ConfigurationError, match="is not a JSON object") as caught:
        Credentials.from_secret(ARN, text)
    assert_nowhere(caught.value)


def test_credentials_are_masked() -> None:
    """A repr shows no password."""
    assert CANARY not in repr(read(login(CANARY)))


LEAF = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.text().map(lambda text: text + CANARY)
    | st.sampled_from([CANARY, f"postgresql://u:{CANARY}@h/d", f"postgresql://{CANARY}", "5432"])
)
VALUE = st.recursive(LEAF, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
FIELD = st.sampled_from(["username", "password", "host", "port", "dbname", "url", "direct_url"])
DOCUMENT = (
    VALUE
    | st.dictionaries(FIELD | st.text(), VALUE)
    | st.fixed_dictionaries(
        {"username": st.text(), "password": st.text()},
        optional={"host": LEAF, "port": st.integers() | LEAF, "dbname": LEAF},
    )
)


@given(document=DOCUMENT, cut=st.integers(0, 400) | st.none(), direct=st.booleans())
def test_no_secret_whatsoever_does_harm(document: Any, cut: int | None, direct: bool) -> None:
    """Any document gives credentials that can be sent, or an error of the layer without content."""
    try:
        text = json.dumps(document)[:cut]
        credentials = Credentials.from_secret(ARN, text, direct=direct)
    except ConfigurationError as error:
        assert_nowhere(error)
    else:
        for part in (credentials.user, credentials.password, credentials.host, credentials.dbname):
            assert b"\0" not in (part or "").encode()


# --- a Secrets Manager that fails or throttles, and a secret that cannot be used now


class Throttled(Fetch):
    """A fetch that Secrets Manager throttles."""

    def run(self) -> None:
        """Answer as fetch_secret does."""
        self._error = SecretError("Secrets Manager refused: ThrottlingException", passing=True)


class Throttling(Fetches):
    """Fetches of which those that `refuses` picks are throttled; the times are noted."""

    def __init__(self, refuses: Callable[[str], bool]) -> None:
        """Take what picks by the stage."""
        super().__init__()
        self.refuses = refuses
        self.times: list[float] = []

    def __call__(self, arn: str, stage: str) -> Fetch:
        """Begin a fetch."""
        self.times.append(time.monotonic())
        if not self.refuses(stage):
            return super().__call__(arn, stage)
        self.stages.append(stage)
        fetch = Throttled(arn, stage)
        fetch.start()
        return fetch


@pytest.mark.parametrize("seconds", [0.5, 1.4, 2.4])
def test_a_throttling_that_ends_in_time_fails_no_new_environment(arn: str, seconds: float) -> None:
    """A fetch is repeated once a second, and looks once more before its time is up."""
    began = time.monotonic()
    fetches = Throttling(lambda _: time.monotonic() - began < seconds)
    assert CredentialCache(Settings(secret_arn=arn), fetches).get(3).password == "first"
    assert len(fetches.times) <= seconds + 2


def test_a_throttling_service_is_asked_once_a_second(arn: str) -> None:
    """However many requests come, an environment adds no more to the load than that."""
    fetches = Throttling(lambda _: True)
    cache = CredentialCache(Settings(secret_arn=arn), fetches)
    began = time.monotonic()
    while time.monotonic() - began < 3.5:
        with pytest.raises(SecretsUnavailableError):
            cache.get(0.4)
    assert 2 <= len(fetches.times) <= 3.5 + 2


def test_a_throttled_look_at_the_previous_version_is_no_answer(
    service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """It is looked for again a second later, and not after half a minute."""
    service.put(arn, login("second"))
    once = Throttling(lambda stage: stage == "AWSPREVIOUS" and stage not in once.stages)
    cache = CredentialCache(Settings(secret_arn=arn), once, clock)
    refused = cache.get(3)
    clock.now += REFUSED_PAUSE
    assert cache.after_refusal(refused, 3) is None
    clock.now += 1.1
    previous = cache.after_refusal(refused, 3)
    assert previous is not None
    assert previous.password == "first"
    assert once.stages.count("AWSPREVIOUS") == 2


UNUSABLE = ["{half a", "[]", '{"username": "app"}']


def put_text(service: SecretsService, arn: str, text: str) -> None:
    """Make any text the current version."""
    service.client.put_secret_value(SecretId=arn, SecretString=text)


@pytest.mark.parametrize("text", UNUSABLE)
def test_a_new_environment_takes_the_previous_version_of_an_unusable_secret(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock, text: str
) -> None:
    """Somebody is editing it: what was right until now is used until it is mended."""
    put_text(service, arn, text)
    assert cache.get(3).password == "first"
    service.put(arn, login("third"))
    clock.now += PAUSE
    assert cache.get(3).password == "third"


def test_an_error_of_an_unusable_secret_names_both_versions(
    cache: CredentialCache, service: SecretsService, arn: str
) -> None:
    """Where neither version can be used, the error says what is wrong with each."""
    put_text(service, arn, '{"username": "app"}')
    put_text(service, arn, CANARY)
    with pytest.raises(ConfigurationError, match="not a JSON object") as caught:
        cache.get(3)
    assert "previous version" in str(caught.value)
    assert "'password'" in str(caught.value)
    assert_nowhere(caught.value)


def test_an_unusable_secret_that_was_never_rotated_is_told(
    service: SecretsService, environment: pytest.MonkeyPatch
) -> None:
    """Without a previous version the error names the current one's problem first."""
    broken = service.create({"user": "app"})
    with pytest.raises(ConfigurationError) as caught:
        CredentialCache(Settings(secret_arn=broken)).get(3)
    assert "'username'" in caught.value.problems[0]
    assert "previous version" in caught.value.problems[-1]


def test_a_refusal_looks_at_the_previous_version_of_an_unusable_secret(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """A warm environment whose login is refused finds the version in between."""
    refused = cache.get(3)
    service.put(arn, login("second"))
    put_text(service, arn, "{half a")
    clock.now += REFUSED_PAUSE
    other = cache.after_refusal(refused, 3)
    assert other is not None
    assert other.password == "second"


def test_a_refusal_with_an_unusable_secret_may_be_tried_again(
    cache: CredentialCache, service: SecretsService, arn: str, clock: FixedClock
) -> None:
    """Where the previous version was the one refused, the secret's repair is waited for."""
    refused = cache.get(3)
    put_text(service, arn, "{half a")
    clock.now += REFUSED_PAUSE
    with pytest.raises(SecretsUnavailableError, match="not a JSON object"):
        cache.after_refusal(refused, 3)


def test_an_interrupted_fetch_holds_up_nobody(
    cache: CredentialCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What an alarm left behind, between taking the turn and using it, is free."""

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(cache, "_first", interrupted)
        with pytest.raises(KeyboardInterrupt):
            cache.get(3)
    abandoned = cache._locked(3)
    abandoned.__enter__()
    del abandoned
    assert cache.get(1).password == "first"
