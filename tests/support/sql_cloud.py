"""POST /sql of a local cloud: its keys, and how a client reaches it."""

import hashlib
import json
import secrets
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final

from psycopg.conninfo import make_conninfo

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.local.cloud import LocalCloud
from lambda_pg_cdk.local.http.caller import call
from lambda_pg_cdk.local.servers.postgres import superuser_dsn
from tests.support.clients import FOLDER, Door

DOMAIN: Final = "db.example.com"
"""`pool.` before it is in DATABASE_URL; `api.` and `apiauth.` are custom domain names."""


def output(cloud: LocalCloud, name: str) -> str:
    """Return an output of the API's stack."""
    stacks = cloud.client("cloudformation").describe_stacks()["Stacks"]
    found = {each["OutputKey"]: each["OutputValue"] for one in stacks for each in one["Outputs"]}
    value: str = found[name]
    return value


def create_key(cloud: LocalCloud, role: str, host: str = "127.0.0.1", **fields: Any) -> str:
    """Add a key to the table; return a client's DATABASE_URL with it."""
    key, secret = f"test-{secrets.token_hex(4)}", secrets.token_urlsafe(32)
    digest = hashlib.sha256(secret.encode()).hexdigest()
    service, arn = cloud.client("secretsmanager"), output(cloud, "SqlKeysArn")
    table = json.loads(service.get_secret_value(SecretId=arn)["SecretString"])
    created = datetime.now(UTC).isoformat()
    table["keys"][key] = {"hash": digest, "role": role, "created": created, **fields}
    service.put_secret_value(SecretId=arn, SecretString=json.dumps(table))
    return f"postgresql://{key}:{secret}@{host}/app"


def superuser(cloud: LocalCloud) -> str:
    """Return the address of the superuser in the application's database."""
    port = cloud.status()["postgres"]["port"]
    return make_conninfo(superuser_dsn(cloud.folder / "postgres", port), dbname="app")


def token_api(cloud: LocalCloud) -> dict[str, Any]:
    """Return the API of callers with a token, as `status` shows it."""
    (found,) = [api for api in cloud.status()["apis"] if api["url"] != cloud.url]
    return dict(found)


@contextmanager
def domains(cloud: LocalCloud) -> Iterator[list[dict[str, Any]]]:
    """Give both APIs their custom domain names, as docs/edge.md says; give what `status` shows."""
    gateway, tokens = cloud.client("apigatewayv2"), token_api(cloud)["id"]
    (main,) = [api["id"] for api in cloud.status()["apis"] if api["id"] != tokens]
    names = {f"api.{DOMAIN}": main, f"apiauth.{DOMAIN}": tokens}
    for name, api in names.items():
        gateway.create_domain_name(DomainName=name)
        gateway.create_api_mapping(DomainName=name, ApiId=api, Stage="$default")
    cloud.reconcile()
    yield cloud.status()["domains"]
    for name in names:
        gateway.delete_domain_name(DomainName=name)
    cloud.reconcile()


def token_variables(cloud: LocalCloud) -> dict[str, str]:
    """Create a user of the sample; return what a program needs to ask for it with a token."""
    token = cloud.token(str(uuid.uuid4()))
    created = call(cloud.url, "POST", "/users", token, {"name": "Ada"})
    statements = json.loads((PROJECT / "sql" / "statements.json").read_text())
    return {
        "TOKEN": token,
        "TOKEN_ENDPOINT": f"{token_api(cloud)['url']}/sql",
        "REGISTERED": statements["user-by-id"]["sql"],
        "USER_ID": created.json()["id"],
    }


def door_of(cloud: LocalCloud) -> Door:
    """Return the door at the APIs' own addresses."""
    endpoint, variables = f"{cloud.url}/sql", token_variables(cloud)
    return Door(create_key(cloud, "writer"), endpoint, superuser(cloud), variables)


@contextmanager
def door_of_domains(cloud: LocalCloud) -> Iterator[Door]:
    """Give the door at custom domain names: a client has nothing but a DATABASE_URL."""
    with domains(cloud) as found:
        (ca_file,) = {each["ca_file"] for each in found}
        resolved = {
            "NAMES": json.dumps({each["name"]: each["port"] for each in found}),
            "NODE_OPTIONS": f"--import {FOLDER / 'names.mjs'}",
            "NODE_EXTRA_CA_CERTS": ca_file,
        }
        url = create_key(cloud, "writer", host=f"pool.{DOMAIN}")
        yield Door(url, None, superuser(cloud), token_variables(cloud) | resolved)
