"""What the examples deploy: the same, whichever tool they are for."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from lambda_pg import Settings

from lambda_pg_cdk.stage.loading import load
from lambda_pg_cdk.stage.parameters import FOR_CLIENTS
from tests.support import examples
from tests.support.examples import CA, SECRET, VALUES, Example

pytestmark = pytest.mark.once

PUBLISHED = frozenset(f"/lambda-pg/dev/{name}" for name in FOR_CLIENTS)
"""The names that a stage publishes for functions of other apps."""

Read = Callable[..., Example]
READERS = [examples.sam, examples.serverless, examples.terraform]

CONTEXT = json.loads((examples.EXAMPLES.parent / "cdk.json").read_text())["context"]


@pytest.fixture(params=READERS, ids=lambda read: read.__name__)
def read(request: pytest.FixtureRequest) -> Read:
    """Give one example's reader after the other."""
    reader: Read = request.param
    return reader


@pytest.fixture
def example(read: Read) -> Example:
    """Give one example after the other."""
    return read()


def test_all_examples_deploy_the_same() -> None:
    """A change of one needs the same change of the others."""
    sam, serverless, terraform = (reader() for reader in READERS)
    assert sam == serverless == terraform


def test_the_function_is_the_handler_beside_them(example: Example) -> None:
    """The code is examples/handler.py, and its name in the zip is the handler's."""
    assert example.code == examples.EXAMPLES / "handler.py"
    assert example.handler == "handler.handler"


def test_only_published_names_are_read(example: Example) -> None:
    """Every parameter that an example reads is one that a stage publishes."""
    assert example.parameters <= PUBLISHED


def test_only_published_names_are_written() -> None:
    """So is every name that stands in a file of the examples in full."""
    for path in (examples.README, examples.SAM):
        names = set(re.findall(r"/lambda-pg/dev/[a-z-]+/[a-z-]+", path.read_text()))
        assert names, path
        assert names <= PUBLISHED, path


def test_the_readme_names_all_that_is_published() -> None:
    """Its table says of each parameter what becomes of it."""
    rows = re.findall(r"(?m)^\| (`[^|]*) \|", examples.README.read_text())
    names = [name for row in rows for name in re.findall(r"`([a-z-]+/[a-z-]+)`", row)]
    assert {f"/lambda-pg/dev/{name}" for name in names} == PUBLISHED


def test_the_layer_understands_the_environment(example: Example) -> None:
    """What an example writes is what the layer reads, without a problem."""
    settings = Settings.from_env({"AWS_LAMBDA_FUNCTION_NAME": "x"} | example.environment)
    assert (settings.host, settings.port) == ("pooler.lambda-pg.internal", 6432)
    assert settings.dbname == "app"
    assert settings.sslmode == "verify-full"
    assert settings.profile == "pgbouncer"
    assert settings.secret_arn == SECRET
    assert settings.ca_pem == CA
    assert settings.application_name == "read-user"


@pytest.mark.parametrize("reader", [examples.serverless, examples.terraform])
def test_a_pooler_without_a_ca_of_its_own(reader: Read) -> None:
    """RDS Proxy has a public certificate: the parameter is not there, and no CA is set."""
    values = {name: value for name, value in VALUES.items() if not name.endswith("/ca")}
    values["/lambda-pg/dev/pooler/profile"] = "rds-proxy"
    settings = Settings.from_env(reader(values).environment)
    assert settings.profile == "rds-proxy"
    assert settings.ca_pem is None


def test_the_function_may_read_one_secret_and_nothing_else(example: Example) -> None:
    """Its own statements allow one action on one ARN."""
    allowed = {"Effect": "Allow", "Action": "secretsmanager:GetSecretValue", "Resource": SECRET}
    assert example.statements == [allowed]


def test_the_function_reaches_the_pooler_and_the_aws_apis(example: Example) -> None:
    """Three rules: out to both, and into the pooler's group on its port."""
    pooler = VALUES["/lambda-pg/dev/pooler/security-group"]
    assert example.rules == {
        ("out", "own", "0.0.0.0/0", "443"),
        ("out", "own", pooler, "6432"),
        ("in", pooler, "own", "6432"),
    }


@pytest.mark.parametrize("path", [examples.SAM, examples.TERRAFORM])
def test_the_role_has_the_policy_for_a_vpc(path: Path) -> None:
    """A function's network interfaces need AWS's own policy; Serverless adds it by itself."""
    assert "AWSLambdaVPCAccessExecutionRole" in path.read_text()


def test_runtime_and_architecture_are_the_layer_s(example: Example) -> None:
    """The layer holds binaries: it runs on what the stage builds it for."""
    config = load({**CONTEXT, "stage": "dev"}.get)
    assert example.runtime == f"python{config.python}"
    assert example.architectures == [config.architecture]


def test_concurrency_is_reserved(example: Example) -> None:
    """Without a reservation nothing bounds the client connections of the function."""
    assert example.concurrency == 10


def test_what_cloudformation_reads_is_right(tmp_path: Path) -> None:
    """cfn-lint, which knows SAM's transform, finds nothing in it, nor in Serverless' resources."""
    template = tmp_path / "template.json"
    template.write_text(json.dumps(examples.Variables().service["resources"]))
    assert lint(examples.SAM, template) == ""


def lint(*templates: Path) -> str:
    """Run cfn-lint with the project's settings, once, as it starts slowly; return what it says."""
    command = [str(Path(sys.executable).with_name("cfn-lint")), *map(str, templates)]
    done = subprocess.run(
        command, cwd=examples.EXAMPLES.parent, capture_output=True, text=True, check=False
    )
    return done.stdout + done.stderr


SERVERLESS_KEYS = {
    "": {
        "service",
        "frameworkVersion",
        "package",
        "provider",
        "custom",
        "functions",
        "resources",
    },
    "package": {"artifact"},
    "provider": {"name", "region", "runtime", "architecture", "memorySize", "timeout", "iam"},
    "provider.iam": {"role"},
    "provider.iam.role": {"statements"},
    "functions.read-user": {
        "handler",
        "reservedConcurrency",
        "layers",
        "vpc",
        "environment",
    },
    "functions.read-user.vpc": {"subnetIds", "securityGroupIds"},
    "resources": {"Resources"},
}
"""What is used of version 3's configuration, by place. 3.40.0 has packaged it so."""


def test_serverless_knows_every_key() -> None:
    """A key that the framework does not know would be ignored with a warning."""
    service = examples.Variables().service
    for place, known in SERVERLESS_KEYS.items():
        node = service
        for key in place.split(".") if place else ():
            node = node[key]
        assert node.keys() <= known, place
    assert service["frameworkVersion"] == "3"


def test_terraform_is_formatted() -> None:
    """`terraform fmt` has nothing to change, where there is a terraform."""
    terraform = shutil.which("terraform") or shutil.which("tofu")
    if terraform is None:
        pytest.skip("neither terraform nor tofu is installed")
    command = [terraform, "fmt", "-check", "-diff", str(examples.TERRAFORM)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


ARGUMENTS = {
    "aws_iam_role": ({"assume_role_policy"}, {"name"}),
    "aws_iam_role_policy": ({"policy", "role"}, {"name"}),
    "aws_iam_role_policy_attachment": ({"policy_arn", "role"}, set()),
    "aws_lambda_function": (
        {"function_name", "role"},
        {
            "architectures",
            "environment",
            "filename",
            "handler",
            "layers",
            "memory_size",
            "reserved_concurrent_executions",
            "runtime",
            "source_code_hash",
            "timeout",
            "vpc_config",
        },
    ),
    "aws_security_group": (set(), {"description", "vpc_id"}),
    "aws_ssm_parameter": ({"name"}, set()),
    "aws_vpc_security_group_egress_rule": (
        {"ip_protocol", "security_group_id"},
        {"cidr_ipv4", "description", "from_port", "referenced_security_group_id", "to_port"},
    ),
    "aws_vpc_security_group_ingress_rule": (
        {"ip_protocol", "security_group_id"},
        {"cidr_ipv4", "description", "from_port", "referenced_security_group_id", "to_port"},
    ),
    "archive_file": ({"type", "output_path"}, {"source_file"}),
}
"""Required and other arguments that are used, as version 6.62 of the AWS provider has them."""

META = {"count", "depends_on", "for_each"}


def test_terraform_knows_every_argument() -> None:
    """Each block has what its type asks for, and nothing that it does not know."""
    for _, label, name, block in declared():
        required, others = ARGUMENTS[label]
        assert required <= block.keys(), name
        assert block.keys() <= required | others | META, name


def test_terraform_declares_what_it_refers_to() -> None:
    """No reference leads nowhere."""
    text = re.sub(r"#.*", "", examples.TERRAFORM.read_text())
    declared_here = {
        f"{'data.' * (kind == 'data')}{label}.{name}" for kind, label, name, _ in declared()
    }
    references = set(re.findall(r"(?:data\.)?\b(?:aws_|archive_)\w+\.\w+", text))
    assert references == declared_here & references
    assert len(references) >= 6
    parsed = examples.Module().parsed
    for kind, block in (("var", "variable"), ("local", "locals")):
        names = {name.strip('"') for entry in parsed[block] for name in entry}
        assert set(re.findall(rf"\b{kind}\.(\w+)", text)) <= names


def declared() -> list[tuple[str, str, str, Mapping[str, Any]]]:
    """List the resources and the data sources."""
    module = examples.Module()
    labels = {(kind, label.strip('"')) for kind in ("resource", "data")
              for entry in module.parsed[kind] for label in entry}  # fmt: skip
    return [
        (kind, label, name, block)
        for kind, label in sorted(labels)
        for name, block in module.blocks(kind, label).items()
    ]


def test_iam_in_the_place_of_a_secret(tmp_path: Path) -> None:
    """What the README changes for it is what the layer reads, and allows one action."""
    (block,) = re.findall(r"(?s)```yaml\n(.*?)```", examples.README.read_text())
    written = tmp_path / "iam.yaml"
    written.write_text(block)
    template = examples.filled(examples.load_yaml(written), VALUES)
    function = template["Resources"]["ReadUser"]["Properties"]
    kept = examples.sam().environment.items()
    environment = {k: v for k, v in kept if k not in {"LAMBDA_PG_SECRET_ARN", "LAMBDA_PG_CA_PEM"}}
    environment |= function["Environment"]["Variables"] | {"AWS_REGION": "eu-west-1"}
    settings = Settings.from_env(environment)
    assert (settings.auth, settings.user) == ("iam", "lambda_pg_user")
    (statement,) = examples.statements_of(function["Policies"])
    arn = VALUES["/lambda-pg/dev/pooler/connect-arn"]
    assert statement == {"Effect": "Allow", "Action": "rds-db:connect", "Resource": arn}
