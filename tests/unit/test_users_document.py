"""The OpenAPI document of the sample function `users`, which Powertools writes a part of."""

import gzip
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from lambda_pg.http_api import Rules
from lambda_pg.http_api.etags import read_tags
from lambda_pg.http_api.keys import read_key
from lambda_pg.http_api.problems import KINDS
from openapi_spec_validator import OpenAPIV31SpecValidator
from pydantic import ValidationError

from lambda_pg_cdk import PROJECT
from lambda_pg_cdk.functions.users.users_api import parts
from lambda_pg_cdk.functions.users.users_api.models import UserFields
from tests.support.functions import load_function
from tests.support.served_users import ServedUsers

ENVIRONMENT = {
    "PGHOST": "database.test",
    "PGUSER": "app",
    "PGPASSWORD": "password",
    "POWERTOOLS_TRACE_DISABLED": "1",
    "AWS_DEFAULT_REGION": "us-east-1",
}
STRICT = Rules(require_idempotency_key=True, require_if_match=True, max_body=1000)


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The function's module, in a stage that shows the document."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**ENVIRONMENT, "API_OPENAPI": "1"}.items():
            patch.setenv(name, value)
        return load_function("functions/users")


@pytest.fixture(scope="module")
def served(module: ModuleType) -> ServedUsers:
    """The function behind an API."""
    return ServedUsers(module)


@pytest.fixture(scope="module")
def document(served: ServedUsers) -> dict[str, Any]:
    """The document that it serves."""
    reply = served.call("GET", "/openapi.json")
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    found: dict[str, Any] = reply.json()
    return found


@pytest.fixture(scope="module")
def strict(module: ModuleType) -> dict[str, Any]:
    """The document of a stage that requires what it can."""
    found: dict[str, Any] = module.document.describe(module.app, STRICT)
    return json.loads(json.dumps(found))  # type: ignore[no-any-return]


def test_the_document_is_valid(document: dict[str, Any], strict: dict[str, Any]) -> None:
    """OpenAPI 3.1, whose schemas are those of JSON Schema 2020-12."""
    assert document["openapi"] == "3.1.0"
    for each in (document, strict):
        faults = list(OpenAPIV31SpecValidator(each).iter_errors())
        assert faults == []


def test_an_invalid_document_would_be_found(document: dict[str, Any]) -> None:
    """The check above looks into the schemas."""
    wrong = json.loads(json.dumps(document))
    wrong["components"]["schemas"]["User"]["required"] = "name"
    assert list(OpenAPIV31SpecValidator(wrong).iter_errors())


def test_every_problem_is_described(strict: dict[str, Any]) -> None:
    """Each of the package's in some operation; 405 belongs to what is no operation."""
    described = {kind.partition("#")[2] for kind in types_in(strict)}
    assert described == KINDS.keys() - {"method-not-allowed"}


def test_what_a_stage_does_not_require_is_not_described(document: dict[str, Any]) -> None:
    """Neither the refusals nor the headers as required ones."""
    described = {kind.partition("#")[2] for kind in types_in(document)}
    missing = KINDS.keys() - described
    assert missing == {
        "method-not-allowed",
        "idempotency-key-missing",
        "precondition-required",
    }
    assert "428" not in document["paths"]["/users/{user_id}"]["patch"]["responses"]
    assert required_headers(document) == set()


def test_what_a_stage_requires_is_described(strict: dict[str, Any]) -> None:
    """Its clients see which headers they need, and the limit of bodies."""
    assert required_headers(strict) == {
        ("createUser", "Idempotency-Key"),
        ("renameUser", "Idempotency-Key"),
        ("renameUser", "If-Match"),
    }
    assert "1000 bytes" in strict["info"]["description"]


def test_powertools_schema_of_a_refusal_is_not_in_it(document: dict[str, Any]) -> None:
    """A 422 is problem details, as all other refusals are."""
    assert "ValidationError" not in json.dumps(document)
    for _, operation in operations(document):
        assert list(operation["responses"]["422"]["content"]) == ["application/problem+json"]


def test_each_operation_names_its_scope(document: dict[str, Any]) -> None:
    """Of the token, which is the only security scheme."""
    scopes = {
        operation["operationId"]: operation["security"] for _, operation in operations(document)
    }
    reading, writing = [{"token": ["users:read"]}], [{"token": ["users:write"]}]
    assert scopes == {
        "listUsers": reading,
        "getUser": reading,
        "createUser": writing,
        "renameUser": writing,
    }
    assert document["components"]["securitySchemes"] == {
        "token": {"type": "http", "scheme": "bearer", "bearerFormat": "JWT"}
    }


def test_what_the_gateway_answers_is_described(document: dict[str, Any]) -> None:
    """It writes a message; problem details of the same status stay beside it."""
    for _, operation in operations(document):
        for status in (401, 403, 429, 503):
            content = operation["responses"][str(status)]["content"]
            assert content["application/json"]["schema"]["$ref"].endswith("/Message")
        assert "application/problem+json" in operation["responses"]["503"]["content"]


def test_a_parameter_is_never_null(document: dict[str, Any]) -> None:
    """In a query there is no null: an optional parameter is absent."""
    parameters = [each for _, operation in operations(document) for each in operation["parameters"]]
    kinds = {each["name"]: each["schema"].get("type") for each in parameters}
    assert (kinds["after"], kinds["limit"], kinds["user_id"]) == ("string", "integer", "string")


EDGES = st.text(
    st.sampled_from(" \t\n\r\v\f\x1c\x1f\x00\x85\xa0\u1680\u180e\u200b\u2028\u3000\ufeff")
)
NAMES = st.builds("".join, st.tuples(EDGES, st.text(max_size=55), EDGES))


@given(NAMES)
@example("A")
@example(" Ad ")
@example("x" * 50)
@example("x" * 51)
def test_the_pattern_of_names_is_what_the_model_takes(name: str) -> None:
    """JSON Schema cannot strip, so its pattern has to say what is left."""
    schema = UserFields.model_json_schema()["properties"]["name"]
    described = len(name) >= schema["minLength"] and re.search(schema["pattern"], name) is not None
    assert described == is_taken(name)


def is_taken(name: str) -> bool:
    """Tell whether the model takes a name."""
    try:
        UserFields(name=name)
    except ValidationError:
        return False
    return True


VISIBLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7F), max_size=260)


@given(st.one_of(VISIBLE, VISIBLE.map(lambda text: f'"{text}"')))
def test_the_pattern_of_keys_is_what_the_package_takes(key: str) -> None:
    """Bare and quoted ones, to the last character."""
    try:
        taken = bool(read_key(key))
    except ValueError:
        taken = False
    pattern = parts.KEY["schema"]["pattern"]
    if key == key.strip():  # the other spaces are not part of a header's value
        assert (re.search(pattern, key) is not None) == taken


@given(st.from_regex(parts.IF_MATCH["schema"]["pattern"], fullmatch=True))
def test_the_package_takes_each_if_match_of_the_pattern(value: str) -> None:
    """It takes a little more, as lists with an empty element."""
    assert value == "*" or read_tags(value)


def test_the_page_needs_no_other_host(served: ServedUsers, document: dict[str, Any]) -> None:
    """It has Swagger UI's own script and style in it, and the document."""
    reply = served.call("GET", "/swagger")
    assert (reply.status, reply.headers["content-type"]) == (200, "text/html; charset=utf-8")
    text = reply.body.decode()
    assert json.dumps(document).replace("</", "<\\/") in text
    assert (
        re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=", text.partition("<script>")[0]) == []
    )
    assert "default-src 'none'" in reply.headers["content-security-policy"]
    packed = served.call("GET", "/swagger", accept_encoding="gzip, br")
    assert packed.headers["content-encoding"] == "gzip"
    assert gzip.decompress(packed.body) == reply.body


def test_a_stage_without_the_document_does_not_serve_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also not if somebody adds the route."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("API_OPENAPI", raising=False)
    served = ServedUsers(load_function("functions/users"))
    for path in ("/openapi.json", "/swagger"):
        assert served.call("GET", path).problem == "not-found"


def test_a_cold_start_does_not_import_the_document() -> None:
    """It is for the stages that show it."""
    program = (
        "import sys, handler;"
        "print([name for name in sys.modules if 'swagger' in name or name.endswith('.document')])"
    )
    folders = [PROJECT / "functions" / "users", PROJECT / "layer" / "python"]
    found = subprocess.run(
        [sys.executable, "-c", program],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": os.pathsep.join(map(str, folders)),
            **ENVIRONMENT,
        },
        capture_output=True,
        check=True,
        text=True,
    )
    assert found.stdout == "[]\n"


def operations(document: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Give each operation with its path."""
    for path, methods in document["paths"].items():
        for operation in methods.values():
            yield path, operation


def types_in(document: dict[str, Any]) -> set[str]:
    """Collect the types of problems that an answer may have."""
    contents = [
        response["content"]["application/problem+json"]["schema"]["allOf"][1]["properties"]
        for _, operation in operations(document)
        for response in operation["responses"].values()
        if "application/problem+json" in response.get("content", {})
    ]
    return {kind for properties in contents for kind in properties["type"]["enum"]}


def required_headers(document: dict[str, Any]) -> set[tuple[str, str]]:
    """List the headers that a client has to send, with the operations."""
    return {
        (operation["operationId"], each["name"])
        for _, operation in operations(document)
        for each in operation["parameters"]
        if each["in"] == "header" and each["required"]
    }
