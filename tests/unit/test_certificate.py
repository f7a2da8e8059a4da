"""The certificate function against moto's Secrets Manager, years of it."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import boto3
import pytest
from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError
from moto import mock_aws

from lambda_pg_cdk.operations.certificate import handler as certificate

NAME = "pooler.lambda-pg.internal"
NOW = datetime(2026, 1, 1, tzinfo=UTC)
YEAR = timedelta(days=365)


@pytest.fixture(autouse=True)
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Give the function its secrets, as CloudFormation makes them: not JSON yet."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(variable, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("CERTIFICATE_NAMES", NAME)
    monkeypatch.setenv("CA_PARAMETER", "/lambda-pg/test/pooler/ca")
    with mock_aws():
        secrets = boto3.client("secretsmanager")
        for name in ("AUTHORITY", "CERTIFICATE"):
            made = secrets.create_secret(Name=name, SecretString='"random, no JSON')
            monkeypatch.setenv(f"{name}_SECRET_ARN", made["ARN"])
        yield


def leaf() -> dict[str, str]:
    """Read what the pooler reads."""
    return certificate.read_secret("CERTIFICATE_SECRET_ARN")


def verifies(bundle: str, when: datetime, name: str = NAME) -> bool:
    """Verify the pooler's certificate as a client that trusts `bundle` does."""
    store = Store(x509.load_pem_x509_certificates(bundle.encode()))
    policy = PolicyBuilder().store(store).time(when)
    chain = x509.load_pem_x509_certificate(leaf()["certificate_chain"].encode())
    try:
        policy.build_server_verifier(x509.DNSName(name)).verify(chain, [])
    except VerificationError:
        return False
    return True


def test_the_first_run_issues_what_clients_can_verify() -> None:
    """The chain ends in the returned CA, for this name only, and only in its time."""
    bundle = certificate.renew([NAME], NOW)
    assert verifies(bundle, NOW)
    assert not verifies(bundle, NOW, "other.internal")
    assert not verifies(bundle, NOW + timedelta(days=91))
    assert leaf()["ca_certificate"] == bundle


def test_another_ca_is_not_trusted() -> None:
    """A CA that did not sign the certificate does not verify it."""
    other = certificate.sign(["another"], NOW, YEAR)
    certificate.renew([NAME], NOW)
    assert not verifies(other.pem, NOW)


def test_nothing_is_issued_before_it_is_due() -> None:
    """A second run changes nothing while more than a third of the time is left."""
    first, before = certificate.renew([NAME], NOW), leaf()
    assert certificate.renew([NAME], NOW + timedelta(days=59)) == first
    assert leaf() == before


def test_a_certificate_is_renewed_when_a_third_is_left() -> None:
    """The CA stays, the key and the certificate change."""
    bundle, before = certificate.renew([NAME], NOW), leaf()
    later = NOW + timedelta(days=61)
    assert certificate.renew([NAME], later) == bundle
    assert leaf()["private_key"] != before["private_key"]
    assert verifies(bundle, later + timedelta(days=80))


def test_new_names_are_taken_at_once() -> None:
    """A change of names issues a certificate for the new ones, addresses included."""
    bundle = certificate.renew([NAME], NOW)
    certificate.renew(["127.0.0.1", "new.internal"], NOW)
    assert verifies(bundle, NOW, "new.internal")
    assert not verifies(bundle, NOW)


def test_the_ca_is_renewed_with_an_overlap() -> None:
    """For a year clients get both CAs while the old one signs; then the new one does."""
    first = certificate.renew([NAME], NOW)
    due = NOW + 7 * YEAR
    both = certificate.renew([NAME], due)
    assert first.partition("\n")[2] in both
    assert first.partition("\n")[0] != both.partition("\n")[0], "a version is published for it"
    assert both.count("BEGIN CERTIFICATE") == 2
    assert verifies(first, due), "who has not been deployed since still connects"
    later = due + YEAR + timedelta(days=1)
    assert certificate.renew([NAME], later) == both
    assert not verifies(first, later)
    assert verifies(both, later)


def test_an_expired_ca_is_forgotten() -> None:
    """After ten years only the successor is trusted."""
    certificate.renew([NAME], NOW)
    certificate.renew([NAME], NOW + 7 * YEAR)
    last = certificate.renew([NAME], NOW + 11 * YEAR)
    assert last.count("BEGIN CERTIFICATE") == 1
    assert verifies(last, NOW + 11 * YEAR)


def test_both_cas_fit_into_what_carries_them() -> None:
    """CloudFormation takes 4 KB from a custom resource, SSM 4 KB in a parameter."""
    certificate.renew([NAME], NOW)
    bundle = certificate.renew([NAME], NOW + 7 * YEAR)
    assert len(bundle) < 2000


def test_cloudformation_gets_the_ca_and_no_key() -> None:
    """Create and Update answer with the CA alone; Delete leaves everything as it is."""
    for kind in ("Create", "Update"):
        answer = certificate.handler({"RequestType": kind}, None)
        assert answer["Data"] == {"CaCertificate": leaf()["ca_certificate"]}
        assert "PRIVATE KEY" not in json.dumps(answer)
    answer = certificate.handler({"RequestType": "Delete", "PhysicalResourceId": "x"}, None)
    assert answer == {"PhysicalResourceId": "x"}
    assert "private_key" in leaf()


def test_the_schedule_publishes_a_renewed_ca() -> None:
    """The weekly run puts the CA where the next deployment reads it."""
    ssm = boto3.client("ssm")
    ssm.put_parameter(Name="/lambda-pg/test/pooler/ca", Value="old", Type="String")
    certificate.handler({"source": "aws.events"}, None)
    published = ssm.get_parameter(Name="/lambda-pg/test/pooler/ca")["Parameter"]["Value"]
    assert published == leaf()["ca_certificate"]


def test_no_key_is_shown() -> None:
    """A key is in no representation."""
    assert "key" not in repr(certificate.sign(["x"], NOW, YEAR)).lower()
