"""The local cloud as its users meet it: addresses, tokens, loopback, a pooler that goes away."""

import http.client
import json
import os
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import jwt
import psutil
import psycopg
import pytest
from cryptography.hazmat.primitives import serialization

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local import cloud as local_cloud
from lambda_pg_cdk.local.cloud import AlreadyRunningError, LocalCloud, UnhealthyError
from lambda_pg_cdk.local.daemon.deployments import stage_settings
from lambda_pg_cdk.local.http.caller import Answer, call
from lambda_pg_cdk.local.http_api.issuer import AUDIENCE, Issuer

SUBJECT = str(uuid.uuid4())


def get(cloud: LocalCloud, path: str, token: str | None = None) -> Answer:
    """Send a GET request to the API."""
    return call(cloud.url, "GET", path, token)


def run(cloud: LocalCloud, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the command line against the test's cloud."""
    return subprocess.run(
        [sys.executable, "-m", "lambda_pg_cdk.local", *arguments],
        env={**os.environ, "LAMBDA_PG_STATE_DIR": str(cloud.folder)},
        cwd=PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_deployed_functions_answer(cloud: LocalCloud) -> None:
    """Without a token for health, with one for users; what was written is read back."""
    assert get(cloud, "/health").json() == {"status": "up"}
    token = cloud.token(SUBJECT)
    made = call(cloud.url, "POST", "/users", token, {"name": "Ada"})
    assert made.status == 201
    assert get(cloud, f"/users/{made.json()['id']}", token).json()["name"] == "Ada"


def test_an_api_that_is_down_is_told_with_the_reason(
    cloud: LocalCloud, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The function's own words say why, and a copy of its log outlives the cloud."""
    cloud.check_health()
    monkeypatch.setattr(local_cloud, "_HEALTH_SECONDS", 0.0)
    cloud.end_environments("health")  # which would answer with what it saw a moment ago
    cloud.pooler("stop")
    try:
        with pytest.raises(
            UnhealthyError, match=r"answered 503[^\n]*health\.log:\n.*refused"
        ) as told:
            cloud.check_health()
    finally:
        cloud.pooler("start")
        cloud.end_environments("health")
    cloud.keep_logs(tmp_path)
    assert (tmp_path / "logs" / "health.log").read_text().splitlines()[-1] in str(told.value)
    assert {path.name for path in tmp_path.iterdir()} >= {"cloud.log", "logs", "postgres", "pooler"}


def test_status_is_one_json_object_that_scripts_can_use(cloud: LocalCloud) -> None:
    """It has the promised keys, and its addresses work."""
    done = run(cloud, "status", "--json")
    found = json.loads(done.stdout)
    addresses = {"api_url", "aws_endpoint_url", "console_url"}
    parts = {"apis", "domains", "postgres", "pooler", "functions", "environments", "requests"}
    assert set(found) == addresses | parts
    assert found["console_url"] is None
    assert found["postgres"]["max_connections"] == 100
    stage = stage_settings(PROJECT, {})
    each = stage.pgbouncer.max_db_connections + stage.sql.max_db_connections
    assert found["pooler"]["max_server_connections"] == stage.pgbouncer.tasks * each
    deployed = {"users", "notes", "health", "baseline", "sql"}
    background = {"migrate", "migration_provider", "rotate", "certificate"}
    assert deployed | background == set(found["functions"])
    first, by_token = found["apis"]
    assert first["url"] == found["api_url"] == cloud.url
    assert by_token["routes"] == ["OPTIONS /sql", "POST /sql"]
    with psycopg.connect(found["postgres"]["dsn"]) as connection:
        assert connection.execute("SHOW max_connections").fetchone() == ("100",)
    with psycopg.connect(found["pooler"]["admin_dsn"], autocommit=True) as console:
        assert console.execute("SHOW VERSION").fetchone() is not None


def test_token_prints_the_token_alone(cloud: LocalCloud) -> None:
    """One line that can be used in a shell, for the subject and the scopes asked for."""
    done = run(cloud, "token", "--sub", SUBJECT, "--scope", "a b")
    (line,) = done.stdout.splitlines()
    claims = jwt.decode(line, options={"verify_signature": False})
    assert (claims["sub"], claims["scope"]) == (SUBJECT, "a b")
    assert get(cloud, "/users", line).status == 403
    assert get(cloud, "/users", run(cloud, "token").stdout.strip()).status == 200


def test_a_second_start_says_that_one_is_running(cloud: LocalCloud) -> None:
    """It fails, names the way to stop it, and leaves the running one alone."""
    with pytest.raises(AlreadyRunningError, match="make down"):
        LocalCloud(cloud.folder).start()
    done = run(cloud, "up")
    assert done.returncode == 1
    assert "is running" in done.stderr
    assert get(cloud, "/health").status == 200


def forged(cloud: LocalCloud) -> dict[str, str]:
    """Make a token for each way in which one can be wrong."""
    issuer = cloud.issuer
    claims = jwt.decode(issuer.token(SUBJECT), options={"verify_signature": False})
    public = issuer.key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    key_id = {"kid": issuer.key_id}
    return {
        "garbage": "abc",
        "algorithm none": jwt.encode(claims, "", "none", key_id),
        "HS256 with the public key": _hs256(claims, public, key_id),
        "wrong audience": issuer.token(SUBJECT, audience="other"),
        "wrong issuer": issuer.token(SUBJECT, claims={"iss": "http://127.0.0.1:1"}),
        "expired": issuer.token(SUBJECT, seconds=-10),
        "not valid yet": issuer.token(SUBJECT, claims={"nbf": time.time() + 600}),
        "someone else's key": Issuer.create(issuer.url).token(SUBJECT),
        "unknown key id": jwt.encode(claims, issuer.key, "RS256", {"kid": "other"}),
    }


def _hs256(claims: dict[str, Any], secret: bytes, headers: dict[str, str]) -> str:
    """Sign with a public key as an HMAC secret, which PyJWT itself refuses to do."""
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    head = jwt.utils.base64url_encode(json.dumps({"alg": "HS256", **headers}).encode())
    body = jwt.utils.base64url_encode(json.dumps(claims).encode())
    signature = algorithm.sign(head + b"." + body, secret)
    return b".".join([head, body, jwt.utils.base64url_encode(signature)]).decode()


def test_every_forged_token_is_refused(cloud: LocalCloud) -> None:
    """401, one body for all of them, and no function has run for it."""
    before = cloud.status()["functions"]["users"]
    cloud.end_environments("users")
    for name, token in forged(cloud).items():
        answer = get(cloud, "/users", token)
        assert (name, answer.status) == (name, 401)
        assert answer.json() == {"message": "Unauthorized"}
    assert get(cloud, "/users").status == 401
    assert cloud.status()["functions"]["users"] == 0, f"it was {before} before"


def test_an_unknown_route_is_404(cloud: LocalCloud) -> None:
    """In API Gateway's own words."""
    answer = get(cloud, "/nothing")
    assert (answer.status, answer.json()) == (404, {"message": "Not Found"})


def test_everything_listens_on_loopback_only(cloud: LocalCloud) -> None:
    """Every socket of every process of the cloud, not only those that are known."""
    guardian = psutil.Process(cloud.state.guardian)
    addresses = set()
    for process in [guardian, *guardian.children(recursive=True)]:
        with suppress(psutil.NoSuchProcess):  # it may have ended meanwhile
            for found in process.net_connections("all"):
                if found.status == psutil.CONN_LISTEN or (found.laddr and not found.raddr):
                    addresses.add(found.laddr.ip if hasattr(found.laddr, "ip") else "unix")
    assert addresses - {"unix"} == {"127.0.0.1"} | {
        task["address"] for task in cloud.status()["pooler"]["tasks"]
    }
    assert all(ip_address(address).is_loopback for address in addresses - {"unix"})


def test_a_web_page_cannot_use_the_control_endpoint(cloud: LocalCloud) -> None:
    """A foreign Host header (DNS rebinding) and any Origin header are refused."""
    address = urlsplit(cloud.state.control_url)
    for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
        connection = http.client.HTTPConnection(str(address.hostname), address.port, timeout=5)
        connection.request("GET", "/status", headers=headers)
        assert connection.getresponse().status == 403
        connection.close()


def test_secrets_are_readable_by_their_owner_only(cloud: LocalCloud) -> None:
    """Only the owner can read the state file and the issuer's key."""
    for name in ("state.json", "issuer.pem"):
        assert Path(cloud.folder / name).stat().st_mode & 0o077 == 0


def test_the_discovery_documents_are_public(cloud: LocalCloud) -> None:
    """Any verifier finds the key from the issuer's address, as with a real provider."""
    found = call(cloud.state.issuer_url, "GET", "/.well-known/openid-configuration").json()
    assert found["issuer"] == cloud.state.issuer_url
    client = jwt.PyJWKClient(found["jwks_uri"])
    token = cloud.token(SUBJECT)
    key = client.get_signing_key_from_jwt(token)
    assert jwt.decode(token, key, ["RS256"], audience=AUDIENCE)["sub"] == SUBJECT
