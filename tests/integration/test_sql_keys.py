"""`make sql-key` and the function's reading of keys, on the control plane of the local cloud."""

from typing import Any

import pytest

from lambda_pg_cdk.functions.sql.sql_http.keys import Keys, read_secret
from lambda_pg_cdk.local.state import sdk_variables
from lambda_pg_cdk.stage.loading import load_stage
from lambda_pg_cdk.tools import sql_key
from tests.support.control_plane import KEY, REGION, ControlPlane

CONFIG = load_stage("local", {"sql": {"enabled": True}})
KEYS = {"Type": "AWS::SecretsManager::Secret", "Properties": {"SecretString": '{"keys": {}}'}}
OUTPUTS = {"SqlKeysArn": {"Value": {"Ref": "Keys"}}, "SqlUrl": {"Value": "http://127.0.0.1/sql"}}


def test_keys_are_made_and_revoked_by_two_operators_at_once(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No change is lost; the function accepts the keys in the table only."""
    stack = f"{CONFIG.stack_prefix}-Api"
    plane.deploy(stack, {"Keys": KEYS}, Outputs=OUTPUTS)
    deployed, other = (sql_key.find(CONFIG, plane.client) for _ in range(2))
    for name, value in sdk_variables(plane.secrets_url, REGION, KEY).items():
        monkeypatch.setenv(name, value)
    rules = sql_key.rules_of(CONFIG)
    keys = Keys(lambda: read_secret(deployed.secret.arn), rules, lifetime=0)

    sql_key.create(deployed, CONFIG, "first", {"role": "reader"})
    edits = 0

    def edit(table: dict[str, Any]) -> None:
        nonlocal edits
        edits += 1
        if edits == 1:
            sql_key.create(other, CONFIG, "theirs", {"role": "reader"})
        del table["first"]

    deployed.secret.change(edit)
    assert edits == 2
    shown = sql_key.create(deployed, CONFIG, "last", {"role": "reader"})
    assert sorted(deployed.secret.read().keys) == ["last", "theirs"]
    secret = shown.partition("postgresql://last:")[2].partition("@")[0]
    assert keys.find("last", secret) is not None
    assert keys.find("theirs", secret) is None
