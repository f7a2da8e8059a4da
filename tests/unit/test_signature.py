"""The signer equals botocore's."""

import datetime
from urllib.parse import urlsplit

from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
from hypothesis import given
from hypothesis import strategies as st
from lambda_pg._signature import Keys, sign

KEY = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=40)
WORD = st.text("abcdefghijklmnopqrstuvwxyz0123456789-", min_size=1, max_size=20)


@given(
    access=KEY,
    secret=KEY,
    token=st.none() | KEY,
    region=WORD,
    service=WORD,
    body=st.binary(max_size=200),
    host=WORD,
)
def test_signature_equals_botocores(
    access: str, secret: str, token: str | None, region: str, service: str, body: bytes, host: str
) -> None:
    """For any keys, region, service, host and body the Authorization header is botocore's."""
    headers = {"host": f"{host}:4566", "x-amz-target": "secretsmanager.GetSecretValue"}
    request = AWSRequest("POST", f"http://{host}:4566/", headers=dict(headers), data=body)
    SigV4Auth(Credentials(access, secret, token), service, region).add_auth(request)
    now = datetime.datetime.strptime(request.headers["X-Amz-Date"], "%Y%m%dT%H%M%SZ")
    ours = sign(
        Keys(access, secret, token),
        region=region,
        service=service,
        headers={**headers, "host": urlsplit(request.url).netloc},
        body=body,
        now=now.replace(tzinfo=datetime.UTC),
    )
    assert ours["authorization"] == request.headers["Authorization"]


def test_keys_are_masked() -> None:
    """Neither the secret key nor the token shows in a repr."""
    assert "s3cret" not in repr(Keys("AKIA", "s3cret", "t0ken-s3cret"))
