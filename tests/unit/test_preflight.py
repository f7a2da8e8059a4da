"""What preflight finds in an account, and what it says to do."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import load, load_stage
from lambda_pg_cdk.tools import preflight
from lambda_pg_cdk.tools.image import LOCKS
from lambda_pg_cdk.tools.preflight import Finding
from lambda_pg_cdk.tools.synth import COMBINATIONS

ROOT = Path(__file__).parents[2]
CONTEXT = json.loads((ROOT / "cdk.json").read_text())["context"]
Answer = Callable[[Stubber], None]


def config(**override: object) -> Config:
    """Read stage dev with some settings changed."""
    context = {**CONTEXT, "stage": "dev", "override": json.dumps(override)}
    return load(context.get)


def ask(check: preflight.Check, answer: Answer, **override: object) -> list[Finding]:
    """Run one check against prepared answers."""

    def clients(service: str) -> Any:
        client = boto3.client(
            service,
            region_name="eu-west-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
        )
        stubber = Stubber(client)
        answer(stubber)
        if stubber._queue:
            stubber.activate()
        return client

    return list(check(config(**override), clients))


def answering(operation: str, response: dict[str, Any]) -> Answer:
    """Prepare an answer."""
    return lambda stubber: stubber.add_response(operation, response)


def refusing(operation: str, code: str) -> Answer:
    """Prepare an error."""
    return lambda stubber: stubber.add_client_error(operation, service_error_code=code)


def limits(total: int, free: int, held: int = 0) -> Answer:
    """Prepare Lambda's limits, and what a function of the stage and another one reserve."""
    limit = {"ConcurrentExecutions": total, "UnreservedConcurrentExecutions": free}
    functions = [{"FunctionName": "LambdaPg-dev-Api-Users-x"}, {"FunctionName": "theirs"}]

    def answer(stubber: Stubber) -> None:
        # Each call has its own client, which is asked for one of the two.
        stubber.client.meta.events.register(
            "before-call.lambda.*", lambda model, **_: replies[model.name]
        )

    replies = {
        "GetAccountSettings": reply({"AccountLimit": limit}),
        "ListFunctions": reply({"Functions": functions}),
        "GetFunctionConcurrency": reply({"ReservedConcurrentExecutions": held}),
    }
    return answer


def reply(body: dict[str, Any]) -> tuple[SimpleNamespace, dict[str, Any]]:
    """Answer a call before it is sent."""
    return SimpleNamespace(status_code=200), body


def test_a_new_account_s_concurrency_is_a_remark() -> None:
    """Ten requests at once deploy where nothing is reserved; the command asks for more."""
    (finding,) = ask(preflight.check_concurrency, limits(10, 10))
    assert not finding.is_fine
    assert not finding.fails
    assert "10 requests at once" in finding.what
    assert "request-service-quota-increase" in finding.remedy
    assert "L-B99A9384" in finding.remedy


def test_a_reservation_leaves_a_hundred() -> None:
    """Lambda refuses to reserve the last hundred."""
    functions = {"reserved_concurrency": 901}
    (finding,) = ask(preflight.check_concurrency, limits(1000, 1000), functions=functions)
    assert finding.fails
    functions = {"reserved_concurrency": 890}  # and 5 for each of health and notes
    (finding,) = ask(preflight.check_concurrency, limits(1000, 1000), functions=functions)
    assert finding.is_fine
    functions = {"reserved_concurrency": 895}
    without = {"functions": functions, "sample_api": False}
    (finding,) = ask(preflight.check_concurrency, limits(1000, 1000), **without)
    assert finding.is_fine


def test_what_sql_reserves_counts_too() -> None:
    """With and without a reservation of the sample."""
    sql = {"enabled": True, "reserved_concurrency": 901}
    (finding,) = ask(preflight.check_concurrency, limits(1000, 1000), sql=sql)
    assert finding.fails
    assert "sql.reserved_concurrency is 901; must be at most 900" in finding.what
    functions, sql = {"reserved_concurrency": 800}, {"enabled": True, "reserved_concurrency": 96}
    (finding,) = ask(preflight.check_concurrency, limits(1000, 1000), functions=functions, sql=sql)
    assert finding.fails
    assert (
        "functions.reserved_concurrency is 800, with 5 more for health, with 5 more for notes,"
        " with 96 more for sql" in finding.what
    )
    assert "must be at most 794" in finding.what
    sql = {"enabled": True, "reserved_concurrency": 90}
    (finding,) = ask(preflight.check_concurrency, limits(1000, 1000), functions=functions, sql=sql)
    assert finding.is_fine


def test_what_the_stage_has_reserved_already_it_has() -> None:
    """A second deployment is not refused for what the first one took."""
    functions = {"reserved_concurrency": 500}
    deployed = limits(1000, 495, held=505)
    (finding,) = ask(preflight.check_concurrency, deployed, functions=functions)
    assert finding.is_fine, finding
    (finding,) = ask(preflight.check_concurrency, limits(1000, 495), functions=functions)
    assert not finding.is_fine


def test_only_what_a_stage_needs_is_asked_for() -> None:
    """Without PgBouncer neither a container builder nor Fargate, without RDS no engine."""
    for name in ("rds-proxy", "external"):
        override = COMBINATIONS["external" if name == "external" else "instance-rds-proxy"]
        chosen = load_stage("dev", override)
        assert not list(preflight.check_fargate(chosen, nobody))
        assert not list(preflight.check_builder(chosen, {}))
        assert not list(preflight.check_lock(chosen, datetime.now(UTC)))
    assert not list(preflight.check_engine(load_stage("dev", COMBINATIONS["external"]), nobody))


def nobody(service: str) -> Any:
    """Fail when anybody is asked."""
    raise AssertionError(service)


def test_aurora_has_versions_of_its_own() -> None:
    """It is asked by its own name."""

    def answer(stubber: Stubber) -> None:
        stubber.add_response(
            "describe_db_engine_versions",
            versions("17.11", "17.10", "17.4-limitless"),
            {"Engine": "aurora-postgresql", "DBParameterGroupFamily": "aurora-postgresql17"},
        )

    (finding,) = ask(preflight.check_engine, answer, database={"kind": "aurora"})
    assert finding.is_fine


@pytest.mark.parametrize(
    ("quota", "fine", "fails"), [(6.0, True, False), (5.0, False, False), (3.0, False, True)]
)
def test_fargate_holds_a_deployment(quota: float, fine: bool, fails: bool) -> None:
    """Three tasks of one vCPU are six while they are replaced, and two, which always run, four."""
    answer = answering("get_service_quota", {"Quota": {"Value": quota}})
    (finding,) = ask(preflight.check_fargate, answer, pgbouncer={"cpu": 1024})
    assert (finding.is_fine, finding.fails) == (fine, fails)
    assert "needs 6 with 3 tasks" in finding.what


def test_a_quota_that_was_never_changed_has_its_default() -> None:
    """A new account has no value for it, and may be deployed to."""
    answers = [
        refusing("get_service_quota", "NoSuchResourceException"),
        answering("get_aws_default_service_quota", {"Quota": {"Value": 6.0}}),
    ]

    def answer(stubber: Stubber) -> None:
        for each in answers:
            each(stubber)

    (finding,) = ask(preflight.check_fargate, answer, pgbouncer={"cpu": 1024})
    assert finding.is_fine
    assert "quota is 6 vCPUs" in finding.what


ROLES = [
    "AWSServiceRoleForRDS",
    "AWSServiceRoleForECS",
    "AWSServiceRoleForApplicationAutoScaling_ECSService",
]


def test_roles_that_a_new_account_lacks_are_a_remark() -> None:
    """Each is named with the command that makes it; AWS makes most of them itself."""

    def answer(stubber: Stubber) -> None:
        for role in ROLES:
            stubber.add_client_error(
                "get_role", service_error_code="NoSuchEntity", expected_params={"RoleName": role}
            )

    findings = ask(preflight.check_roles, answer)
    assert [role in finding.what for role, finding in zip(ROLES, findings, strict=True)] == [
        True
    ] * 3
    services = [finding.remedy.rpartition(" ")[2] for finding in findings]
    assert services == [
        "rds.amazonaws.com",
        "ecs.amazonaws.com",
        "ecs.application-autoscaling.amazonaws.com",
    ]
    assert all("iam create-service-linked-role" in finding.remedy for finding in findings)
    assert not any(finding.fails for finding in findings)


def test_roles_that_are_there_are_fine() -> None:
    """The roles are looked up by their names."""
    role = {
        "Path": "/",
        "RoleName": "AWSServiceRoleForRDS",
        "RoleId": "AROAIOSFODNN7EXAMPLE",
        "Arn": "arn:aws:iam::111122223333:role/AWSServiceRoleForRDS",
        "CreateDate": datetime(2026, 1, 1, tzinfo=UTC),
    }
    override = COMBINATIONS["instance-rds-proxy"]
    (finding,) = ask(preflight.check_roles, answering("get_role", {"Role": role}), **override)
    assert finding.is_fine


@pytest.mark.parametrize(
    ("name", "count"), [("external", 0), ("existing-pgbouncer", 2), ("existing-rds-proxy", 1)]
)
def test_only_roles_of_what_the_stage_creates_are_looked_for(name: str, count: int) -> None:
    """An existing database needs none; RDS Proxy is RDS's."""
    roles = preflight._service_roles(load_stage("dev", COMBINATIONS[name]))
    assert len(roles) == count


def test_a_missing_bootstrap_is_named() -> None:
    """The remedy is the command."""
    answer = refusing("get_parameter", "ParameterNotFound")
    (finding,) = ask(preflight.check_bootstrap, answer)
    assert "cdk bootstrap" in finding.remedy


@pytest.mark.parametrize(("version", "fine"), [("5", False), ("6", True), ("28", True)])
def test_an_old_bootstrap_is_refused(version: str, fine: bool) -> None:
    """Version 6 is the first that the templates accept."""
    answer = answering("get_parameter", {"Parameter": {"Value": version}})
    (finding,) = ask(preflight.check_bootstrap, answer)
    assert finding.is_fine is fine


def test_a_zone_that_is_not_there_is_named() -> None:
    """The remedy lists those there are."""
    zones = [{"ZoneName": f"eu-west-1{letter}", "State": "available"} for letter in "ac"]
    answer = answering("describe_availability_zones", {"AvailabilityZones": zones})
    (finding,) = ask(preflight.check_zones, answer)
    assert "eu-west-1b" in finding.what
    assert "eu-west-1a, eu-west-1c" in finding.remedy


def versions(*names: str) -> dict[str, Any]:
    """Answer with the versions that RDS offers."""
    return {"DBEngineVersions": [{"EngineVersion": name} for name in names]}


def test_a_version_that_rds_does_not_offer_is_named() -> None:
    """The remedy lists those it does, the newest last, as a number and not as a text."""
    answer = answering("describe_db_engine_versions", versions("17.10", "17.9"))
    (finding,) = ask(preflight.check_engine, answer)
    assert finding.fails
    assert "17.9, 17.10" in finding.remedy
    (finding,) = ask(preflight.check_engine, answer, database={"minor_version": 10})
    assert finding.is_fine


def test_a_stage_that_asks_for_an_old_version_is_warned() -> None:
    """RDS offers a newer one: it has fixes that the stage would begin without."""
    answer = answering("describe_db_engine_versions", versions("17.9", "17.10", "17.12"))
    (finding,) = ask(preflight.check_engine, answer, database={"minor_version": 9})
    assert not finding.fails
    assert "PostgreSQL 17.9; RDS offers 17.12" in finding.what
    assert "database.minor_version to 12" in finding.remedy


def test_another_account_is_refused() -> None:
    """A stage with an account is not deployed to a different one."""
    answer = answering("get_caller_identity", {"Account": "111111111111"})
    (finding,) = ask(preflight.check_account, answer, account="222222222222")
    assert not finding.is_fine
    assert ask(preflight.check_account, answer)[0].is_fine


def test_without_a_builder_the_remedy_names_some(tmp_path: Path) -> None:
    """CDK_DOCKER is followed; a builder that is missing or fails is a finding."""
    environment = {"PATH": str(tmp_path), "CDK_DOCKER": "finch"}
    (finding,) = preflight.check_builder(config(), environment)
    assert "finch" in finding.what
    assert "docker, finch or podman" in finding.remedy
    program = tmp_path / "finch"
    program.write_text("#!/bin/sh\necho 'the virtual machine is stopped' >&2\nexit 1\n")
    program.chmod(0o755)
    (finding,) = preflight.check_builder(config(), environment)
    assert "the virtual machine is stopped" in finding.what
    program.write_text("#!/bin/sh\nexit 0\n")
    assert all(found.is_fine for found in preflight.check_builder(config(), environment))


@pytest.mark.parametrize("older", LOCKS)
def test_an_old_lock_of_the_image_is_a_warning(
    older: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a month, whichever of the two it is; a deployment does not wait for it."""
    made = datetime(2026, 10, 1, 9, tzinfo=UTC)
    (tmp_path / "pgbouncer").mkdir()
    for name in LOCKS:
        locked = made if name == older else made + timedelta(days=20)
        (tmp_path / "pgbouncer" / name).write_text(f"snapshot {locked:%Y%m%dT%H%M%SZ}\n")
    monkeypatch.setattr(preflight, "PACKAGE", tmp_path)
    (fresh,) = preflight.check_lock(config(), made + timedelta(days=30, hours=1))
    assert fresh.is_fine
    (old,) = preflight.check_lock(config(), made + timedelta(days=31))
    assert not old.is_fine
    assert not old.fails
    assert str(old).startswith("WARN")
    assert "31 days ago" in old.what
    assert "make image-lock" in old.remedy


def test_a_finding_without_more_blocks() -> None:
    """A warning is the exception."""
    assert Finding("what", "remedy").fails
    assert not Finding("what").fails


def test_what_may_not_be_asked_is_a_finding() -> None:
    """A refusal by IAM does not end the look at the rest."""

    def clients(service: str) -> Any:
        client = boto3.client(
            service, region_name="eu-west-1", aws_access_key_id="a", aws_secret_access_key="b"
        )
        stubber = Stubber(client)
        if service == "sts":
            stubber.add_response("get_caller_identity", {"Account": "1" * 12})
        else:
            stubber.add_client_error(OPERATIONS[service], service_error_code="AccessDenied")
        stubber.activate()
        return client

    findings = list(preflight.look(config(), clients, {"PATH": ""}))
    refused = [finding for finding in findings if "could not be looked at" in finding.what]
    assert len(refused) == len(preflight.ACCOUNT_CHECKS)
    remarks = [finding.what.partition(" ")[0] for finding in refused if not finding.fails]
    assert remarks == ["roles", "deployed_version", "reboot"]


OPERATIONS = {
    "ec2": "describe_availability_zones",
    "ssm": "get_parameter",
    "lambda": "get_account_settings",
    "service-quotas": "get_service_quota",
    "iam": "get_role",
    "rds": "describe_db_engine_versions",
}


PUBLISHED = {"Parameter": {"Value": "db-1"}}
DEPLOYED = {
    "DBInstanceIdentifier": "db-1",
    "DBInstanceClass": "db.t4g.small",
    "Engine": "postgres",
    "EngineVersion": "17.11",
    "AutoMinorVersionUpgrade": True,
    "PreferredMaintenanceWindow": "sun:03:00-sun:04:00",
    "MultiAZ": False,
    "AllocatedStorage": 30,
    "MaxAllocatedStorage": 100,
    "BackupRetentionPeriod": 1,
    "DeletionProtection": False,
}


def deployed(status: str, most: int) -> Answer:
    """Answer for an instance as stage dev has it: what its parameters wait for, and set."""
    group = {"DBParameterGroupName": "group", "ParameterApplyStatus": status}
    answers = [
        ("get_parameter", PUBLISHED),
        ("describe_db_instances", {"DBInstances": [{**DEPLOYED, "DBParameterGroups": [group]}]}),
        (
            "describe_db_parameters",
            {"Parameters": [{"ParameterName": "max_connections", "ParameterValue": str(most)}]},
        ),
    ]

    def answer(stubber: Stubber) -> None:
        operation, response = answers.pop(0)
        stubber.add_response(operation, response)

    return answer


def test_a_reboot_is_told_before_a_deployment_makes_it() -> None:
    """A new max_connections and a change of the instance in one deployment reboot it at once."""
    change = {"max_connections": 140, "instance_class": "t4g.medium"}
    (found,) = ask(preflight.check_reboot, deployed("in-sync", 150), database=change)
    assert not found.fails
    assert "150 deployed, 140 wanted" in found.what
    assert "database.instance_class" in found.what
    assert "at once, also outside of the maintenance window" in found.what
    assert "alone" in found.remedy


def test_storage_that_grows_is_a_change_of_the_instance() -> None:
    """Less than there is by now is none: RDS has let the storage grow by itself."""
    for storage_gib, grows in ((40, True), (30, False), (20, False)):
        change = {"max_connections": 140, "storage_gib": storage_gib}
        (found,) = ask(preflight.check_reboot, deployed("in-sync", 150), database=change)
        assert ("database.storage_gib" in found.what) == grows, storage_gib


@pytest.mark.parametrize(
    ("status", "change"), [("in-sync", {"max_connections": 140}), ("pending-reboot", {})]
)
def test_a_reboot_that_waits_is_told(status: str, change: dict[str, object]) -> None:
    """The next change of the instance, any one, would make it."""
    (found,) = ask(preflight.check_reboot, deployed(status, 150), database=change)
    assert not found.fails
    assert "which the next change of the instance makes at once" in found.what
    assert "reboot-db-instance --db-instance-identifier db-1" in found.remedy


def test_a_server_as_it_is_deployed_waits_for_nothing() -> None:
    """Nor does a change of the instance alone."""
    (found,) = ask(preflight.check_reboot, deployed("in-sync", 150))
    assert found.is_fine
    (found,) = ask(preflight.check_reboot, deployed("in-sync", 150), database={"backup_days": 2})
    assert found.is_fine


def test_before_the_first_deployment_nothing_is_rebooted() -> None:
    """There is no parameter yet."""
    assert ask(preflight.check_reboot, refusing("get_parameter", "ParameterNotFound")) == []


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"minor_version": 12}, "database.minor_version"),
        ({"maintenance_start": "mon:02:00"}, "database.maintenance_start"),
    ],
)
def test_an_upgrade_and_another_window_are_changes_of_the_instance(
    change: dict[str, object], named: str
) -> None:
    """With a max_connections that waits, either reboots it."""
    (found,) = ask(preflight.check_reboot, deployed("pending-reboot", 150), database=change)
    assert named in found.what


def test_a_version_that_rds_has_installed_itself_is_no_change_of_the_instance() -> None:
    """CloudFormation sends a version only when the template has another one than before."""
    (found,) = ask(
        preflight.check_reboot, deployed("pending-reboot", 150), database={"minor_version": 10}
    )
    assert "this deployment changes the instance" not in found.what


def test_a_protected_stage_without_an_address_is_refused() -> None:
    """It would not synthesise; a stage that may be removed needs none."""
    (found,) = preflight.check_alarms(load_stage("prod"))
    assert found.fails
    assert "observability.email is null; must be set when termination_protection" in found.what
    assert found.remedy.startswith("Set an address")
    address = {"observability": {"email": "somebody@example.com"}}
    (found,) = preflight.check_alarms(load_stage("prod", address))
    assert found.is_fine
    assert next(preflight.check_alarms(config())).is_fine


# The version that is deployed


def running(version: str, *offered: str, **changes: object) -> Answer:
    """Answer for a server of a version, where RDS offers some."""
    server = {**DEPLOYED, "EngineVersion": version, **changes}
    member = {"DBInstanceIdentifier": "db-1"}
    cluster = {"DBClusterIdentifier": "database", "DBClusterMembers": [member]}
    replies: dict[str, dict[str, Any]] = {
        "GetParameter": PUBLISHED,
        "DescribeDBInstances": {"DBInstances": [server]},
        "DescribeDBClusters": {"DBClusters": [cluster]},
        "DescribeDBEngineVersions": versions(*offered),
    }

    def answer(stubber: Stubber) -> None:
        stubber.client.meta.events.register(
            "before-call.*.*", lambda model, **_: reply(replies[model.name])
        )

    return answer


def look_at(answer: Answer, **override: object) -> Finding:
    """Look at the version that is deployed."""
    (found,) = ask(preflight.check_deployed_version, answer, **override)
    assert not found.fails
    return found


@pytest.mark.parametrize(
    ("wanted", "remedy"),
    [(7, "Set database.minor_version to 11 in cdk.json and deploy"), (11, "Deploy: that restarts")],
)
def test_a_server_behind_what_rds_offers_is_a_warning(wanted: int, remedy: str) -> None:
    """It says how the fixes get there, and that the server restarts."""
    found = look_at(running("17.7", "17.9", "17.11", "17.10"), database={"minor_version": wanted})
    assert "db-1 runs PostgreSQL 17.7; RDS offers 17.11" in found.what
    assert remedy in found.remedy
    assert "sun:03:00-sun:04:00 UTC" in found.remedy


def test_a_server_without_automatic_upgrades_is_said_to_have_none() -> None:
    """It would stay as it is."""
    found = look_at(running("17.7", "17.11", AutoMinorVersionUpgrade=False))
    assert "automatic minor upgrades are off" in found.remedy


def test_a_server_that_rds_has_upgraded_is_told() -> None:
    """A stage that sets an older version than the server has could not be deployed."""
    found = look_at(running("17.12", "17.11", "17.12"))
    assert "db-1 runs PostgreSQL 17.12, database.minor_version is 11" in found.what
    assert "database.minor_version to 12" in found.remedy
    assert look_at(running("17.11", "17.11")).is_fine


def existing(**changes: object) -> dict[str, Any]:
    """Change where an existing database is."""
    override = dict(COMBINATIONS["existing-pgbouncer"])
    where = {**override["database"]["existing"], "resource_id": None, **changes}
    return {**override, "database": {**override["database"], "existing": where}}


@pytest.mark.parametrize("engine", ["postgres", "aurora-postgresql"])
def test_an_existing_server_is_compared_within_its_own_major_version(engine: str) -> None:
    """Nobody here may upgrade it."""
    override = existing(cluster=engine != "postgres")
    found = look_at(running("15.9", "15.9", "15.19", Engine=engine), **override)
    assert "database runs PostgreSQL 15.9; RDS offers 15.19" in found.what
    assert "Have its owner upgrade it" in found.remedy


def test_an_existing_server_without_a_name_is_not_looked_at() -> None:
    """Which is said."""
    override = existing(identifier=None)
    (found,) = ask(preflight.check_deployed_version, running("17.7", "17.11"), **override)
    assert found.is_fine
    assert "database.existing.identifier is null" in found.what


def test_before_the_first_deployment_no_server_is_behind() -> None:
    """And without a database there is none."""
    refused = refusing("get_parameter", "ParameterNotFound")
    assert ask(preflight.check_deployed_version, refused) == []
    external = COMBINATIONS["external"]
    assert not list(preflight.check_deployed_version(load_stage("dev", external), nobody))


def test_the_command_reads_the_settings_of_the_project() -> None:
    """A stage that cdk.json lacks is answered with those that it has."""
    command = [sys.executable, "-m", "lambda_pg_cdk.tools.preflight", "--stage", "test"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "")
    assert "must be one of local, dev, prod" in done.stdout
