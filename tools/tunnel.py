"""Say how to reach a deployed database from a laptop: `make tunnel STAGE=dev`.

Session Manager carries the tunnel: nothing listens on the internet, and AWS logs each session.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from lambda_pg_cdk import PACKAGE
from lambda_pg_cdk.stage.config import Config
from lambda_pg_cdk.stage.loading import NoProjectError, load_stage
from lambda_pg_cdk.stage.messages import problem
from lambda_pg_cdk.stage.parameters import parameter_name
from lambda_pg_cdk.stage.schema import ConfigurationError

LOCAL_PORT = 15432

Read = Callable[[str], str | None]


class NoTunnelError(LookupError):
    """The stage has no bastion; the message says what to set or to deploy."""


def commands(config: Config, read: Read) -> str:
    """Write the commands: one opens the tunnel, the others connect through it.

    `read` returns the value of a published parameter, or None if it does not exist.
    """
    if not config.network.bastion:
        raise NoTunnelError(
            problem("network.bastion", False, f"be true in stage {config.stage!r} of cdk.json: set")
            + f" it and deploy, `make deploy STAGE={config.stage}`"
        )
    names = ("network/bastion", "database/host", "database/port", "database/owner-secret-arn")
    values = {name: read(parameter_name(config, name)) for name in names}
    if missing := [parameter_name(config, name) for name, value in values.items() if value is None]:
        raise NoTunnelError(
            f"the parameters {', '.join(missing)} do not exist: deploy the stage first,"
            f" `make deploy STAGE={config.stage}`"
        )
    bastion, host, port, secret = values.values()
    roots = config.database.ca_file or PACKAGE / "layer/python/lambda_pg/certs/aws.pem"
    return f"""\
# In one terminal, which stays open (needs AWS's session-manager-plugin):
aws ssm start-session --region {config.region} --target {bastion} \\
  --document-name AWS-StartPortForwardingSessionToRemoteHost \\
  --parameters 'host={host},portNumber={port},localPortNumber={LOCAL_PORT}'

# In another terminal, for the user name (OWNER) and the password of the database's owner:
aws secretsmanager get-secret-value --region {config.region} --query SecretString --output text \\
  --secret-id '{secret}'
# The certificate is for the database's name, so that is the host; hostaddr is the tunnel:
psql 'host={host} hostaddr=127.0.0.1 port={LOCAL_PORT} dbname={config.database.name} \
user=OWNER sslmode=verify-full sslrootcert={roots}'
"""


def main() -> int:
    """Print the commands for a stage; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stage", default="dev")
    try:
        config = load_stage(parser.parse_args().stage)
        client = boto3.client("ssm", region_name=config.region)
        print(commands(config, lambda name: _parameter(client, name)))
    except (ConfigurationError, NoProjectError, NoTunnelError, BotoCoreError, ClientError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def _parameter(client: Any, name: str) -> str | None:
    try:
        value: str = client.get_parameter(Name=name)["Parameter"]["Value"]
    except client.exceptions.ParameterNotFound:
        return None
    return value


if __name__ == "__main__":
    sys.exit(main())
