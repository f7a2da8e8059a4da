"""Credentials against Secrets Manager's API (moto's server): cache, refresh, failure."""

import json
from collections.abc import Iterator

import boto3
import pytest
from lambda_pg import CredentialsError, Settings
from lambda_pg._credentials import LIFETIME, CredentialCache
from lambda_pg._secrets import SecretsUnavailableError, fetch_secret
from moto.server import ThreadedMotoServer


class Clock:
    """A wall clock that the test moves."""

    now = 1000.0

    def __call__(self) -> float:
        """Return the time."""
        return self.now


class Vault:
    """One secret in a real HTTP Secrets Manager, and a count of the fetches."""

    def __init__(self, endpoint: str) -> None:
        """Create the secret."""
        self.client = boto3.client("secretsmanager", "us-east-1", endpoint_url=endpoint)
        self.fetches = 0
        self.down = False
        secret = self.client.create_secret(Name="app", SecretString=self.text("first"))
        self.arn: str = secret["ARN"]

    @staticmethod
    def text(password: str) -> str:
        """Write a secret as RDS does."""
        return json.dumps({"username": "app", "password": password, "port": "5432"})

    def rotate(self, password: str) -> None:
        """Put a new current version."""
        self.client.put_secret_value(SecretId=self.arn, SecretString=self.text(password))

    def fetch(self, arn: str, *, timeout: float) -> dict[str, object]:
        """Fetch as the layer does, counted; or fail as a service that is down."""
        self.fetches += 1
        if self.down:
            raise SecretsUnavailableError("down")
        return fetch_secret(arn, timeout=timeout)


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """A Secrets Manager on loopback."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture
def vault(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Vault]:
    """A fresh secret, and the environment of a function that may read it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    vault = Vault(endpoint)
    yield vault
    vault.client.delete_secret(SecretId=vault.arn, ForceDeleteWithoutRecovery=True)


@pytest.fixture
def clock() -> Clock:
    """A clock at an arbitrary time."""
    return Clock()


@pytest.fixture
def cache(vault: Vault, clock: Clock) -> CredentialCache:
    """A cache over the vault."""
    return CredentialCache(Settings(secret_arn=vault.arn), vault.fetch, clock)


def test_a_secret_is_fetched_once(cache: CredentialCache, vault: Vault, clock: Clock) -> None:
    """Within its life a secret is fetched once; after it, again."""
    assert cache.get(3).password == "first"
    assert cache.get(3).port == 5432
    assert vault.fetches == 1
    clock.now += LIFETIME + 1
    cache.get(3)
    assert vault.fetches == 2


def test_a_refused_login_fetches_the_new_password(cache: CredentialCache, vault: Vault) -> None:
    """After a rotation, a refusal of the old password brings the new one."""
    old = cache.get(3)
    vault.rotate("second")
    assert cache.get(3) == old
    assert cache.replace(old, 3)
    assert cache.get(3).password == "second"


def test_a_refusal_without_a_rotation_says_so(cache: CredentialCache) -> None:
    """When the secret still holds what was refused, there is nothing new to try."""
    assert not cache.replace(cache.get(3), 3)


def test_an_expired_copy_outlives_an_outage(
    cache: CredentialCache, vault: Vault, clock: Clock
) -> None:
    """When Secrets Manager fails, the old value is kept in use."""
    old = cache.get(3)
    vault.down = True
    clock.now += LIFETIME + 1
    assert cache.get(3) == old


def test_without_a_copy_an_outage_is_an_error(cache: CredentialCache, vault: Vault) -> None:
    """The first fetch cannot be replaced by anything."""
    vault.down = True
    with pytest.raises(CredentialsError):
        cache.get(3)


def test_an_unknown_secret_is_named(vault: Vault) -> None:
    """A refusal by Secrets Manager names the secret and AWS's reason, and is final."""
    arn = vault.arn.replace("secret:app", "secret:other")
    with pytest.raises(CredentialsError, match="ResourceNotFoundException") as caught:
        fetch_secret(arn, timeout=3)
    assert arn in str(caught.value)
    assert not isinstance(caught.value, SecretsUnavailableError)


@pytest.mark.parametrize("text", ["no json", "[]", '{"username": "app"}', '{"password": 5}'])
def test_a_malformed_secret_is_an_error_without_its_text(text: str, vault: Vault) -> None:
    """A secret that is no object with username and password is named, not shown."""
    vault.client.put_secret_value(SecretId=vault.arn, SecretString=text)
    with pytest.raises(CredentialsError, match="secret") as caught:
        CredentialCache(Settings(secret_arn=vault.arn)).get(3)
    assert text not in str(caught.value)


def test_boto3_is_the_way_when_the_keys_are_elsewhere(
    vault: Vault, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Without keys in the environment, boto3's chain finds them."""
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    shared = tmp_path_factory.mktemp("aws") / "credentials"
    shared.write_text("[default]\naws_access_key_id = test\naws_secret_access_key = test\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(shared))
    assert fetch_secret(vault.arn, timeout=3)["password"] == "first"


def test_a_service_that_does_not_listen_is_a_passing_failure(
    vault: Vault, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A refused connection to Secrets Manager may be tried again."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    with pytest.raises(SecretsUnavailableError, match="did not answer"):
        fetch_secret(vault.arn, timeout=3)
