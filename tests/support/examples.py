"""The examples as their tools see them, with values for the published parameters."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import hcl2
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SAM = EXAMPLES / "sam" / "template.yaml"
SERVERLESS = EXAMPLES / "serverless" / "serverless.yml"
TERRAFORM = EXAMPLES / "terraform" / "main.tf"
README = EXAMPLES / "README.md"

SECRET = "arn:aws:secretsmanager:eu-west-1:000000000000:secret:application-AbCdEf"
CA = "-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n"

VALUES = {
    "/lambda-pg/dev/layer/arn": "arn:aws:lambda:eu-west-1:000000000000:layer:lambda-pg:1",
    "/lambda-pg/dev/pooler/host": "pooler.lambda-pg.internal",
    "/lambda-pg/dev/pooler/port": "6432",
    "/lambda-pg/dev/pooler/profile": "pgbouncer",
    "/lambda-pg/dev/pooler/ca": CA,
    "/lambda-pg/dev/pooler/security-group": "sg-0123456789abcdef0",
    "/lambda-pg/dev/pooler/secret-arn": SECRET,
    "/lambda-pg/dev/pooler/user": "lambda_pg_user",
    "/lambda-pg/dev/pooler/connect-arn": (
        "arn:aws:rds-db:eu-west-1:000000000000:dbuser:prx-0123456789abcdef0/lambda_pg_user"
    ),
    "/lambda-pg/dev/database/name": "app",
    "/lambda-pg/dev/network/vpc": "vpc-0123456789abcdef0",
    "/lambda-pg/dev/network/subnets": "subnet-0123456789abcdef0,subnet-0123456789abcdef1",
}
"""What the stage `dev` publishes, each name with a value as it may be."""


@dataclass(frozen=True)
class Example:
    """What an example deploys, whichever tool it is for."""

    parameters: set[str]
    code: Path
    handler: str
    runtime: str
    architectures: list[str]
    layers: list[str]
    concurrency: object
    subnets: list[str]
    environment: dict[str, str]
    statements: list[dict[str, Any]]
    rules: set[tuple[str, str, str, str]]
    """Direction, group, peer and port; the function's own group is `own`."""


def sam(values: Mapping[str, str] = VALUES) -> Example:
    """Read the SAM template."""
    template = filled(load_yaml(SAM), values)
    function = template["Resources"]["ReadUser"]["Properties"]
    return Example(
        parameters={
            item["Default"] for item in template["Parameters"].values() if is_published(item)
        },
        code=(SAM.parent / function["CodeUri"]).resolve(),
        handler=function["Handler"],
        runtime=function["Runtime"],
        architectures=function["Architectures"],
        layers=function["Layers"],
        concurrency=function["ReservedConcurrentExecutions"],
        subnets=function["VpcConfig"]["SubnetIds"],
        environment=function["Environment"]["Variables"],
        statements=statements_of(function["Policies"]),
        rules=rules_of(template["Resources"]),
    )


class WithReferences(yaml.SafeLoader):  # type: ignore[misc]  # it has no types
    """Read YAML with the one short form of CloudFormation that the examples use."""


WithReferences.add_constructor("!Ref", lambda loader, node: {"Ref": loader.construct_scalar(node)})


def load_yaml(path: Path) -> dict[str, Any]:
    """Read YAML with references; another short form of CloudFormation raises yaml.YAMLError."""
    loaded: dict[str, Any] = yaml.load(path.read_text(), WithReferences)  # noqa: S506 - a safe one
    return loaded


def filled(template: dict[str, Any], values: Mapping[str, str]) -> dict[str, Any]:
    """Replace a template's references to parameters by the parameters' values."""
    parameters = template["Parameters"]
    given = {name: item["Default"] for name, item in parameters.items() if not is_published(item)}
    for name, item in parameters.items():
        if is_published(item):
            value = values[item["Default"]]
            given[name] = value.split(",") if "<List<" in item["Type"] else value
    return {**template, "Resources": put_in(template["Resources"], given)}


def is_published(parameter: Mapping[str, Any]) -> bool:
    """Tell whether CloudFormation looks a parameter up in SSM."""
    return bool(parameter["Type"].startswith("AWS::SSM::"))


def put_in(node: Any, given: Mapping[str, Any]) -> Any:
    """Replace references to what is given; those to resources stay."""
    if isinstance(node, dict):
        if node.keys() == {"Ref"} and node["Ref"] in given:
            return given[node["Ref"]]
        return {name: put_in(part, given) for name, part in node.items()}
    return [put_in(part, given) for part in node] if isinstance(node, list) else node


def statements_of(policies: list[Any]) -> list[dict[str, Any]]:
    """Take the statements out of a function's policies; AWS's own are only named."""
    own = [policy for policy in policies if not isinstance(policy, str)]
    return [statement for policy in own for statement in policy["Statement"]]


def rules_of(resources: Mapping[str, Any]) -> set[tuple[str, str, str, str]]:
    """Take the rules of the one group out of CloudFormation's resources."""
    (group,) = [name for name, kind in types_of(resources) if kind == "AWS::EC2::SecurityGroup"]
    out = resources[group]["Properties"]["SecurityGroupEgress"]
    kind = "AWS::EC2::SecurityGroupIngress"
    into = [resources[name]["Properties"] for name, given in types_of(resources) if given == kind]
    return {
        *(("out", "own", rule.get("CidrIp") or _peer(rule), port_of(rule)) for rule in out),
        *(("in", rule["GroupId"], "own", port_of(rule)) for rule in into if _own(rule) == group),
    }


def types_of(resources: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Pair the names of resources with their types."""
    return [(name, resource["Type"]) for name, resource in resources.items()]


def port_of(rule: Mapping[str, Any]) -> str:
    """Read the one TCP port of a rule."""
    assert (rule["IpProtocol"], rule["FromPort"]) == ("tcp", rule["ToPort"])
    return str(rule["FromPort"])


def _peer(rule: Mapping[str, Any]) -> str:
    return str(rule["DestinationSecurityGroupId"])


def _own(rule: Mapping[str, Any]) -> str:
    return str(rule["SourceSecurityGroupId"]["Ref"])


def serverless(values: Mapping[str, str] = VALUES) -> Example:
    """Read serverless.yml."""
    variables = Variables(values)
    service = variables.service
    provider, (function,) = service["provider"], service["functions"].values()
    return Example(
        parameters=variables.read,
        code=zipped(SERVERLESS),
        handler=function["handler"],
        runtime=provider["runtime"],
        architectures=[provider["architecture"]],
        layers=function["layers"],
        concurrency=function["reservedConcurrency"],
        subnets=function["vpc"]["subnetIds"],
        environment=function["environment"],
        statements=provider["iam"]["role"]["statements"],
        rules=rules_of(service["resources"]["Resources"]),
    )


def zipped(configuration: Path) -> Path:
    """Find the file that the comment beside the artifact zips."""
    command = re.search(r"# zip -j (\S+) (\S+)", configuration.read_text())
    assert command
    assert f"artifact: {command[1]} " in configuration.read_text()
    return (configuration.parent / command[2]).resolve()


class Variables:
    """serverless.yml, and the variables that it uses: self, sls:stage and ssm."""

    def __init__(self, values: Mapping[str, str] = VALUES) -> None:
        """Resolve the file; `read` are the names of the parameters."""
        self._values = values
        self._written = load_yaml(SERVERLESS)
        self.read: set[str] = set()
        self.service: dict[str, Any] = self._resolved(self._written)

    def _resolved(self, node: Any) -> Any:
        if isinstance(node, dict):
            return {name: self._resolved(part) for name, part in node.items()}
        if isinstance(node, list):
            return [self._resolved(part) for part in node]
        while isinstance(node, str) and (found := re.search(r"\$\{([^${}]+)\}", node)):
            value = self._variable(found[1])
            node = value if found[0] == node else node.replace(found[0], value)
        return node

    def _variable(self, text: str) -> Any:
        source, _, address = text.partition(":")
        if text == "sls:stage":
            return "dev"
        if source == "ssm":
            return self._parameter(*address.split(", "))
        assert source == "self", f"an unknown source: ${{{text}}}"
        node: Any = self._written
        for key in address.split("."):
            node = node[key]
        return node

    def _parameter(self, name: str, fallback: str | None = None) -> Any:
        self.read.add(name)
        value = self._values[name] if fallback is None else self._values.get(name, fallback[1:-1])
        return value.split(",") if name.endswith("/subnets") else value


def terraform(values: Mapping[str, str] = VALUES) -> Example:
    """Read main.tf."""
    module = Module(values)
    (function,) = module.blocks("resource", "aws_lambda_function").values()
    (policy,) = module.blocks("resource", "aws_iam_role_policy").values()
    (code,) = module.blocks("data", "archive_file").values()
    return Example(
        parameters=module.parameters,
        code=(TERRAFORM.parent / module.value(code["source_file"])).resolve(),
        handler=module.value(function["handler"]),
        runtime=module.value(function["runtime"]),
        architectures=module.value(function["architectures"]),
        layers=module.value(function["layers"]),
        concurrency=module.value(function["reserved_concurrent_executions"]),
        subnets=module.value(function["vpc_config"][0]["subnet_ids"]),
        environment=module.value(function["environment"][0]["variables"]),
        statements=module.value(policy["policy"])["Statement"],
        rules=module.rules,
    )


@cache
def parsed(text: str) -> dict[str, Any]:
    """Parse HCL, each text once: it takes a second. Nobody changes the result."""
    found: dict[str, Any] = hcl2.loads(text)
    return found


class Module:
    """main.tf, and the values of the few kinds of expression that it uses."""

    def __init__(self, values: Mapping[str, str] = VALUES) -> None:
        """Parse the file; `values` are the parameters' by name."""
        self._values = values
        self.parsed = parsed(TERRAFORM.read_text())
        (names,) = re.findall(r"toset\((\[.*?\])\)", self._data("published")["for_each"])
        self._published = {
            key: self._named(self._data("published")["name"], key)
            for key in re.findall(r'"([^"]+)"', names)
        }

    def blocks(self, kind: str, label: str) -> dict[str, dict[str, Any]]:
        """Find the blocks of one type by their names."""
        found = [entry[f'"{label}"'] for entry in self.parsed[kind] if f'"{label}"' in entry]
        return {
            name.strip('"'): {key: value for key, value in block.items() if key[:2] != "__"}
            for entry in found
            for name, block in entry.items()
        }

    @property
    def parameters(self) -> set[str]:
        """Name the parameters that are read."""
        return {*self._published.values(), self._ca}

    @property
    def _ca(self) -> str:
        return self._named(self._data("pooler_ca")["name"])

    @property
    def rules(self) -> set[tuple[str, str, str, str]]:
        """Read the rules; a reference to the function's group is `own`."""
        found = set()
        for direction, kind in (("in", "ingress"), ("out", "egress")):
            for block in self.blocks("resource", f"aws_vpc_security_group_{kind}_rule").values():
                rule = {key: self.value(value) for key, value in block.items()}
                assert (rule["ip_protocol"], rule["from_port"]) == ("tcp", rule["to_port"])
                peer = rule.get("cidr_ipv4") or rule["referenced_security_group_id"]
                found.add((direction, rule["security_group_id"], peer, str(rule["from_port"])))
        return found

    def _data(self, name: str) -> dict[str, Any]:
        return self.blocks("data", "aws_ssm_parameter")[name]

    def _named(self, template: str, key: str = "") -> str:
        text = template.strip('"').replace("${each.key}", key)
        return text.replace("${var.stage}", self._variable("stage"))

    def _variable(self, name: str) -> Any:
        (block,) = [entry[f'"{name}"'] for entry in self.parsed["variable"] if f'"{name}"' in entry]
        return self.value(block["default"])

    def value(self, node: Any) -> Any:
        """Evaluate an expression as the parser hands it over."""
        if isinstance(node, dict):
            return {name: self.value(part) for name, part in node.items() if name[:2] != "__"}
        if isinstance(node, list):
            return [self.value(part) for part in node]
        return self._text(node) if isinstance(node, str) else node

    def _text(self, text: str) -> Any:
        published = r'local\.published\["([^"]+)"\]'
        if text.startswith('"'):
            return text.strip('"').replace("${path.module}/", "")
        if name := re.fullmatch(rf'\$\{{(split\(",", )?{published}\)?\}}', text):
            value = self._values[self._published[name[2]]]
            return value.split(",") if name[1] else value
        if document := re.fullmatch(r"\$\{jsonencode\((.*)\)\}", text, re.DOTALL):
            return self.value(parsed(f"document = {document[1]}\n")["document"])
        if name := re.fullmatch(r"\$\{var\.(\w+)\}", text):
            return self._variable(name[1])
        if text == "${aws_security_group.read_user.id}":
            return "own"
        assert text == '${join("", data.aws_ssm_parameter.pooler_ca[*].insecure_value)}', text
        return self._values.get(self._ca, "")
