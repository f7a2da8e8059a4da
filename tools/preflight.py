"""Check, before a deployment, what it needs of the account and of this machine.

    python -m lambda_pg_cdk.tools.preflight --stage dev

It only reads. Every finding says what to do; the exit code is 0 if a deployment can begin.
"""

import argparse
import os
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from lambda_pg_cdk import IN_CHECKOUT, PACKAGE
from lambda_pg_cdk.stage.budget import (
    HEALTH_CONCURRENCY,
    NOTES_CONCURRENCY,
    BudgetError,
    budget_of,
    rolling_tasks,
)
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.consistency import alarm_problem
from lambda_pg_cdk.stage.loading import NoProjectError, load_stage
from lambda_pg_cdk.stage.maintenance import maintenance_window
from lambda_pg_cdk.stage.parameters import parameter_name
from lambda_pg_cdk.stage.schema import ConfigurationError
from lambda_pg_cdk.tools.image import LOCKS, builder_problem, locked_at

BOOTSTRAP_PARAMETER = "/cdk-bootstrap/hnb659fds/version"
BOOTSTRAP_VERSION = 6
LAMBDA_CONCURRENCY = "L-B99A9384"
FARGATE_VCPUS = "L-3032A538"
LEFT_UNRESERVED = 100
"""Concurrent executions that Lambda keeps for functions without a reservation."""
USEFUL_CONCURRENCY = 100
"""With fewer, Lambda throttles a storm before it reaches the pool."""
LOCK_DAYS = 30
"""Days after which the image's packages probably lack security fixes."""


@dataclass(frozen=True)
class Finding:
    """The result of one check and, if there is a problem, what to do."""

    what: str
    remedy: str = ""
    blocks: bool = True
    """Whether it must be done before a deployment."""

    @property
    def is_fine(self) -> bool:
        """Tell whether nothing has to be done."""
        return not self.remedy

    @property
    def fails(self) -> bool:
        """Tell whether it prevents a deployment."""
        return self.blocks and not self.is_fine

    def __str__(self) -> str:
        """Write it as a line, and the remedy below it."""
        if self.is_fine:
            return f"ok    {self.what}"
        return f"{'FAIL' if self.blocks else 'WARN'}  {self.what}\n      {self.remedy}"


Clients = Callable[[str], Any]
Check = Callable[[Config, Clients], Iterator[Finding]]


def check_account(config: Config, clients: Clients) -> Iterator[Finding]:
    """Compare the credentials' account with the stage's."""
    account = clients("sts").get_caller_identity()["Account"]
    if config.account in {None, account}:
        yield Finding(f"account {account}, region {config.region}")
    else:
        yield Finding(
            f"the credentials are of account {account}, the stage's is {config.account}",
            "Use credentials of that account, or change 'account' of the stage in cdk.json.",
        )


def check_zones(config: Config, clients: Clients) -> Iterator[Finding]:
    """Check that the account has the stage's zones in its region."""
    zones = clients("ec2").describe_availability_zones()["AvailabilityZones"]
    there = {zone["ZoneName"] for zone in zones if zone["State"] == "available"}
    missing = sorted(set(config.availability_zones) - there)
    if missing:
        yield Finding(
            f"{config.region} has no {', '.join(missing)} for this account",
            f"Choose among {', '.join(sorted(there))} in 'availability_zones' of the stage.",
        )
    else:
        yield Finding(f"zones {', '.join(config.availability_zones)}")


def check_bootstrap(config: Config, clients: Clients) -> Iterator[Finding]:
    """Check the bootstrap stack, which has the roles and the bucket for uploads."""
    remedy = f"Run: node_modules/.bin/cdk bootstrap (region {config.region})"
    try:
        parameter = clients("ssm").get_parameter(Name=BOOTSTRAP_PARAMETER)["Parameter"]
    except ClientError as error:
        if error.response["Error"]["Code"] != "ParameterNotFound":
            raise
        yield Finding(f"{config.region} is not bootstrapped for the CDK", remedy)
        return
    version = int(parameter["Value"])
    old = version < BOOTSTRAP_VERSION
    yield Finding(f"bootstrap version {version}", f"{remedy}, it is too old" if old else "")


def check_concurrency(config: Config, clients: Clients) -> Iterator[Finding]:
    """Compare Lambda's concurrency with what the stage reserves; new accounts have 10.

    If nothing is reserved, too few are a warning only: the stage deploys, and Lambda throttles it
    later. https://docs.aws.amazon.com/lambda/latest/dg/gettingstarted-limits.html
    """
    limits = clients("lambda").get_account_settings()["AccountLimit"]
    total = limits["ConcurrentExecutions"]
    # The stage's own reservations can be used again.
    free = limits["UnreservedConcurrentExecutions"] + _held(config, clients)
    reserved = sum(_reserved(config).values())
    if reserved and free - reserved < LEFT_UNRESERVED:
        yield _too_many(config, free, total)
    elif total < USEFUL_CONCURRENCY:
        yield Finding(
            f"Lambda runs {total} requests at once here, as in a new account",
            f"Ask for more: {_increase(config, 'lambda', LAMBDA_CONCURRENCY)}",
            blocks=False,
        )
    else:
        yield Finding(f"Lambda runs {total} requests at once, {free} of them unreserved")


def _reserved(config: Config) -> dict[str, int]:
    """Return what each setting reserves; that of `users` reserves for `health` and `notes`, too."""
    users = config.functions.reserved_concurrency
    found = {} if users is None else {"functions.reserved_concurrency": users}
    if users is not None:
        found["health"] = HEALTH_CONCURRENCY
    if users is not None and config.sample_api:
        found["notes"] = NOTES_CONCURRENCY
    if config.sql.enabled:
        found["sql.reserved_concurrency"] = config.sql.reserved_concurrency
    return found


def _too_many(config: Config, free: int, total: int) -> Finding:
    """Name the reservation to change: the first setting, which is the sample's if it has one."""
    reserved = _reserved(config)
    name, others = next(iter(reserved)), dict(list(reserved.items())[1:])
    more = "".join(f", with {count} more for {other}" for other, count in others.items())
    most = max(free - LEFT_UNRESERVED - sum(others.values()), 0)
    remedy = f"Ask for more: {_increase(config, 'lambda', LAMBDA_CONCURRENCY)}"
    other = ", or set it to null" if name.startswith("functions") else ", or reserve less"
    return Finding(
        f"{name} is {reserved[name]}{more}; must be at most {most}: {free} of {total} concurrent"
        f" executions are unreserved, and Lambda keeps {LEFT_UNRESERVED}",
        f"{remedy}{other}.",
    )


def _held(config: Config, clients: Clients) -> int:
    """Add up the reservations of the stage's functions; their names begin with the stack's."""
    client = clients("lambda")
    held = 0
    for page in client.get_paginator("list_functions").paginate():
        for function in page["Functions"]:
            name = function["FunctionName"]
            if name.startswith(f"{config.stack_prefix}-Api-"):
                answer = client.get_function_concurrency(FunctionName=name)
                held += answer.get("ReservedConcurrentExecutions", 0)
    return held


def check_fargate(config: Config, clients: Clients) -> Iterator[Finding]:
    """Compare Fargate's quota with the vCPUs of the pooler during a deployment.

    Too few for `pgbouncer.max_tasks` are a warning: the stage deploys, but cannot scale as far.
    """
    if config.pooler != "pgbouncer":
        return
    settings = config.pgbouncer
    least, needed = (
        rolling_tasks(tasks, settings.maximum_percent) * settings.cpu / 1024
        for tasks in (settings.tasks, settings.max_tasks)
    )
    quota = _quota(clients("service-quotas"), "fargate", FARGATE_VCPUS)
    what = (
        f"Fargate's quota is {quota:g} vCPUs; a deployment of the pooler needs {needed:g} with"
        f" {settings.max_tasks} tasks (pgbouncer.max_tasks) and {least:g} with {settings.tasks}"
    )
    remedy = f"Ask for more: {_increase(config, 'fargate', FARGATE_VCPUS)}"
    yield Finding(what, "" if quota >= needed else remedy, blocks=quota < least)


def _quota(client: Any, service: str, code: str) -> float:
    """Read a quota; one that was never changed for the account has AWS's default.

    https://docs.aws.amazon.com/servicequotas/2019-06-24/apireference/API_GetServiceQuota.html
    """
    named = {"ServiceCode": service, "QuotaCode": code}
    try:
        answer = client.get_service_quota(**named)
    except client.exceptions.NoSuchResourceException:
        answer = client.get_aws_default_service_quota(**named)
    return float(answer["Quota"]["Value"])


def check_roles(config: Config, clients: Clients) -> Iterator[Finding]:
    """Check the service-linked roles of RDS, ECS and the scaling of ECS services.

    AWS creates a missing role with the first resource of its service. ECS uses it at once, before
    all of IAM knows it, so the first deployment of a new account can fail and the second works: https://github.com/aws-cloudformation/cloudformation-coverage-roadmap/issues/818
    """
    iam = clients("iam")
    for service, role in _service_roles(config).items():
        try:
            iam.get_role(RoleName=role)
        except ClientError as error:
            if error.response["Error"]["Code"] != "NoSuchEntity":
                raise
            yield Finding(
                f"the account has no role {role} yet; without it, the first deployment may fail",
                f"Run: aws iam create-service-linked-role --aws-service-name {service}",
                blocks=False,
            )
        else:
            yield Finding(f"role {role}")


def _service_roles(config: Config) -> dict[str, str]:
    """Return the service-linked roles that the stage needs, by service.

    https://docs.aws.amazon.com/AmazonRDS/latest/UserGuide/UsingWithRDS.IAM.ServiceLinkedRoles.html
    https://docs.aws.amazon.com/AmazonECS/latest/developerguide/using-service-linked-roles.html
    https://docs.aws.amazon.com/autoscaling/application/userguide/application-auto-scaling-service-linked-roles.html
    """
    roles = {}
    if config.database.kind in ENGINES or config.pooler == "rds-proxy":
        roles["rds.amazonaws.com"] = "AWSServiceRoleForRDS"
    if config.pooler == "pgbouncer":
        roles["ecs.amazonaws.com"] = "AWSServiceRoleForECS"
        if config.pgbouncer.max_tasks > config.pgbouncer.tasks:
            scaling = "ecs.application-autoscaling.amazonaws.com"
            roles[scaling] = "AWSServiceRoleForApplicationAutoScaling_ECSService"
    return roles


def check_engine(config: Config, clients: Clients) -> Iterator[Finding]:
    """Check whether RDS offers the stage's version of PostgreSQL in the region, and a newer one."""
    settings = config.database
    if settings.kind not in ENGINES:
        return
    version = f"{settings.major_version}.{settings.minor_version}"
    offered = _offered(clients, ENGINES[settings.kind], settings.major_version)
    if version not in offered:
        yield Finding(
            f"RDS does not offer PostgreSQL {version} in {config.region}",
            f"Choose among {', '.join(offered)}: set database.minor_version in cdk.json.",
        )
        return
    newest = _minor(offered[-1])
    behind = newest > settings.minor_version
    yield Finding(
        f"PostgreSQL {version}" + (f"; RDS offers {offered[-1]}" if behind else ""),
        f"Set database.minor_version to {newest} in cdk.json." if behind else "",
        blocks=False,
    )


def check_deployed_version(config: Config, clients: Clients) -> Iterator[Finding]:
    """Compare the version that the server runs with the newest that RDS offers of its major one."""
    if config.database.kind == "none":
        return
    if config.database.kind == "existing" and config.database.existing.identifier is None:
        yield Finding(
            f"the version of {config.database.existing.host} is not checked:"
            " database.existing.identifier is null"
        )
        return
    server = _server(config, clients)
    if server is None:
        return
    deployed, name = server["EngineVersion"], server["identifier"]
    major, wanted = int(deployed.split(".")[0]), config.database.minor_version
    offered = _offered(clients, server["Engine"], major)
    newest = _minor(offered[-1]) if offered else 0
    ours = config.database.kind in ENGINES and major == config.database.major_version
    if newest > _minor(deployed):
        yield Finding(
            f"{name} runs PostgreSQL {deployed}; RDS offers {offered[-1]}",
            _upgrade(server, newest if ours else None, wanted),
            blocks=False,
        )
    elif ours and _minor(deployed) > wanted:
        yield Finding(
            f"{name} runs PostgreSQL {deployed}, database.minor_version is {wanted}",
            f"Set database.minor_version to {_minor(deployed)}: RDS does not go back, so a"
            " deployment that sets an older one fails.",
            blocks=False,
        )
    else:
        yield Finding(f"{name} runs PostgreSQL {deployed}")


def _offered(clients: Clients, engine: str, major: int) -> list[str]:
    """List the versions that RDS offers of a major version, the newest last."""
    known = clients("rds").describe_db_engine_versions(
        Engine=engine, DBParameterGroupFamily=f"{engine}{major}"
    )["DBEngineVersions"]
    # Aurora has others, as 16.8-limitless.
    versions = {entry["EngineVersion"] for entry in known}
    return sorted((each for each in versions if PLAIN_VERSION.fullmatch(each)), key=_minor)


def _minor(version: str) -> int:
    """Return the minor version; names of Extended Support have a suffix, as 11.22-RDS.20241121."""
    return int(version.split(".")[1].partition("-")[0])


def _upgrade(server: Mapping[str, Any], newest: int | None, wanted: int) -> str:
    """Say how a server gets the newest version; `newest` is None for a server of another app."""
    if newest is None:
        by_hand = "Have its owner upgrade it"
    elif newest == wanted:
        by_hand = "Deploy"
    else:
        by_hand = f"Set database.minor_version to {newest} in cdk.json and deploy"
    window = server["PreferredMaintenanceWindow"]
    alone = (
        f"RDS upgrades it in a maintenance window ({window} UTC), weeks after a release"
        if server["AutoMinorVersionUpgrade"]
        else "automatic minor upgrades are off"
    )
    return f"{by_hand}: that restarts the server at once. Otherwise, {alone}."


def check_reboot(config: Config, clients: Clients) -> Iterator[Finding]:
    """Check whether max_connections waits for a reboot, and whether this deployment reboots.

    CloudFormation reboots an instance whose parameters wait for it when it changes the instance,
    at once (its provider of AWS::RDS::DBInstance, UpdateHandler, shouldReboot).
    """
    if config.database.kind != "instance":
        return
    server = _server(config, clients)
    if server is None:
        return
    (group,) = server["DBParameterGroups"]
    waits = group["ParameterApplyStatus"] == "pending-reboot"
    deployed = _max_connections(clients, group["DBParameterGroupName"])
    wanted = config.database.max_connections
    changes = _changes(config, server)
    name = server["DBInstanceIdentifier"]
    if not waits and deployed == wanted:
        yield Finding(f"max_connections of {name} needs no reboot")
    elif changes:
        yield Finding(
            f"max_connections of {name} ({deployed} deployed, {wanted} wanted) needs a reboot, and"
            f" this deployment changes the instance ({', '.join(changes)}): it is rebooted at once,"
            " also outside of the maintenance window",
            "Deploy max_connections alone, reboot in a quiet hour, then deploy the rest.",
            blocks=False,
        )
    else:
        yield Finding(
            f"max_connections of {name} ({deployed} deployed, {wanted} wanted) takes effect with a"
            " reboot, which the next change of the instance makes at once",
            "Deploy, then reboot it in a quiet hour:"
            f" aws rds reboot-db-instance --db-instance-identifier {name}",
            blocks=False,
        )


def _server(config: Config, clients: Clients) -> dict[str, Any] | None:
    """Describe the stage's instance or cluster; None before the first deployment.

    `identifier` is added: the two have different names for it. A cluster's own record does not say
    when it is upgraded: that is up to its instances, of which the first is asked.
    """
    existing = config.database.existing
    name = existing.identifier
    if config.database.kind != "existing":
        parameter = parameter_name(config, "database/identifier")
        try:
            name = clients("ssm").get_parameter(Name=parameter)["Parameter"]["Value"]
        except ClientError as error:
            if error.response["Error"]["Code"] != "ParameterNotFound":
                raise
            return None
    rds, identifier = clients("rds"), name
    if config.database.kind == "aurora" or existing.cluster:
        cluster = rds.describe_db_clusters(DBClusterIdentifier=name)["DBClusters"][0]
        name = cluster["DBClusterMembers"][0]["DBInstanceIdentifier"]
    server: dict[str, Any] = rds.describe_db_instances(DBInstanceIdentifier=name)["DBInstances"][0]
    return {**server, "identifier": identifier}


def _max_connections(clients: Clients, group: str) -> int | None:
    """Return max_connections of the parameter group; None if it has RDS's default."""
    pages = clients("rds").get_paginator("describe_db_parameters")
    for page in pages.paginate(DBParameterGroupName=group, Source="user"):
        for parameter in page["Parameters"]:
            if parameter["ParameterName"] == "max_connections":
                return int(parameter["ParameterValue"])
    return None


def _changes(config: Config, server: Mapping[str, Any]) -> list[str]:
    """List the settings that differ from the deployed instance."""
    database = config.database
    wanted = {
        "instance_class": (server["DBInstanceClass"], f"db.{database.instance_class}"),
        "maintenance_start": (
            server["PreferredMaintenanceWindow"],
            maintenance_window(database.maintenance_start),
        ),
        "multi_az": (server["MultiAZ"], database.multi_az),
        "max_storage_gib": (server.get("MaxAllocatedStorage"), database.max_storage_gib),
        "backup_days": (server["BackupRetentionPeriod"], database.backup_days),
        "deletion_protection": (server["DeletionProtection"], database.deletion_protection),
    }
    changed = [name for name, (deployed, new) in wanted.items() if deployed != new]
    # RDS upgrades the server and increases the storage: more than the setting is not a change.
    if database.minor_version > _minor(server["EngineVersion"]):
        changed.append("minor_version")
    if database.storage_gib > server["AllocatedStorage"]:
        changed.append("storage_gib")
    return [f"database.{name}" for name in changed]


def check_alarms(config: Config) -> Iterator[Finding]:
    """Check that alarms have an address; a protected stage does not deploy without one."""
    if problem := alarm_problem(config):
        what, _, remedy = problem.partition(". ")
        yield Finding(what, remedy)
    else:
        yield Finding(f"alarms go to {config.observability.email or 'nobody'}")


def check_builder(config: Config, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Run the container builder that the CDK will run for the pooler's image."""
    if config.pooler != "pgbouncer":
        return
    builder = environment.get("CDK_DOCKER") or "docker"
    path = shutil.which(builder, path=environment.get("PATH"))
    if path is None:
        yield Finding(
            f"the container builder {builder!r} is not installed; the pooler's image needs one",
            "Install docker, finch or podman, and name it: export CDK_DOCKER=finch",
        )
        return
    problem = builder_problem(path)
    if problem:
        yield Finding(f"{path} {problem}", "Start it, or name another in CDK_DOCKER")
        return
    yield Finding(f"container builder {path}")


def check_lock(config: Config, now: datetime) -> Iterator[Finding]:
    """Compare the age of the image's older lock with the month in which security fixes come."""
    if config.pooler != "pgbouncer":
        return
    locked = min(locked_at((PACKAGE / "pgbouncer" / name).read_text()) for name in LOCKS)
    days = (now - locked).days
    remedy = RENEW_LOCKS if IN_CHECKOUT else NEWER_LOCKS
    yield Finding(
        f"the pooler's image has packages that were locked on {locked:%Y-%m-%d}, {days} days ago",
        remedy if days > LOCK_DAYS else "",
        blocks=False,
    )


RENEW_LOCKS = "Lock today's packages, build the image, and commit the locks: make image-lock image"
NEWER_LOCKS = "Take the newest version of lambda-pg-cdk, which has newer packages"

ENGINES = {"instance": "postgres", "aurora": "aurora-postgresql"}
"""RDS's names of what a stage may create; a parameter family's name has the major version too."""

PLAIN_VERSION = re.compile(r"\d+\.\d+")

ACCOUNT_CHECKS: tuple[Check, ...] = (
    check_zones,
    check_bootstrap,
    check_concurrency,
    check_fargate,
    check_roles,
    check_engine,
    check_deployed_version,
    check_reboot,
)

REMARKS: tuple[Check, ...] = (check_roles, check_deployed_version, check_reboot)
"""Checks that never refuse a deployment."""


def look(config: Config, clients: Clients, environment: Mapping[str, str]) -> Iterator[Finding]:
    """Yield all findings; without credentials the account is not asked any further."""
    yield from check_alarms(config)
    yield from check_builder(config, environment)
    yield from check_lock(config, datetime.now(UTC))
    try:
        yield from check_account(config, clients)
    except (BotoCoreError, ClientError) as error:
        yield Finding(f"AWS cannot be asked: {error}", "Sign in, as with: aws sso login")
        return
    for check in ACCOUNT_CHECKS:
        try:
            yield from check(config, clients)
        except (BotoCoreError, ClientError) as error:
            name = check.__name__.removeprefix("check_")
            yield Finding(
                f"{name} could not be looked at: {error}",
                "Allow it, or look yourself.",
                blocks=check not in REMARKS,
            )


def _increase(config: Config, service: str, quota: str) -> str:
    return (
        f"aws service-quotas request-service-quota-increase --region {config.region} "
        f"--service-code {service} --quota-code {quota} --desired-value 1000"
    )


def main() -> int:
    """Print every finding; return 1 when there is something to do."""
    parser = argparse.ArgumentParser(description="Look at what a deployment needs.")
    parser.add_argument("--stage", default="dev", help="a stage of cdk.json")
    stage = parser.parse_args().stage
    try:
        config = load_stage(stage)
        budget_of(config).check()
    except (ConfigurationError, NoProjectError, BudgetError) as error:
        print(error)
        return 1
    session = boto3.Session(region_name=config.region)
    failed = False
    for finding in look(config, session.client, os.environ):
        print(finding, flush=True)
        failed = failed or finding.fails
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
