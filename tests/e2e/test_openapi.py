"""What the local API serves is what its OpenAPI document says: schemathesis, and a page for people.

schemathesis makes requests from the document that `GET /openapi.json` serves, valid ones and
invalid ones, single ones and chains, and compares each answer with the document.
"""

import os
import re
import subprocess
import sys
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from lambda_pg_cdk.local.cloud import LocalCloud
from tests.support import fresh_keys
from tests.support.browser import Seen, started
from tests.support.mutants import mutant_function

PROGRAM = Path(sys.executable).with_name("schemathesis")
SECONDS = 240
SEED = 18
EXAMPLES = 50
"""Random requests of each operation, besides about 250 that are always the same."""

SETTINGS = """
hooks = "{hooks}"
base-url = "{url}"

[auth.openapi.token]
bearer = "${{TOKEN}}"

# Whether a valid If-Match fits depends on the row, which the document does not know.
[[operations]]
include-method = "PATCH"
[operations.checks.positive_data_acceptance]
enabled = false
"""


class Schemathesis:
    """The program, with a token of one user."""

    def __init__(self, cloud: LocalCloud, folder: Path) -> None:
        """Write its settings into a folder, which also gets its reports."""
        self._folder, self._url = folder, cloud.url
        self._settings = folder / "schemathesis.toml"
        text = SETTINGS.format(hooks=fresh_keys.__file__, url=cloud.url)
        self._settings.write_text(text)
        self._environment = {**os.environ, "TOKEN": cloud.token(str(uuid.uuid4())), "NO_COLOR": "1"}

    def run(self, *options: str) -> tuple[int, str]:
        """Check the served document; return the exit code and the output."""
        command = [str(PROGRAM), "--config-file", str(self._settings), "run"]
        always = [f"{self._url}/openapi.json", f"--seed={SEED}", "--generation-database=none"]
        done = subprocess.run(
            [*command, *always, *options],
            cwd=self._folder,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        return done.returncode, done.stdout


@pytest.fixture
def schemathesis(cloud: LocalCloud, tmp_path: Path) -> Schemathesis:
    """The program, for the running API."""
    return Schemathesis(cloud, tmp_path)


def test_what_is_served_is_what_the_document_says(
    schemathesis: Schemathesis, tmp_path: Path
) -> None:
    """No 500; no status, header, type or body that is not documented; bad requests are refused."""
    report = tmp_path / "report.ndjson"
    code, output = schemathesis.run(f"--max-examples={EXAMPLES}", f"--report-ndjson-path={report}")
    assert code == 0, output
    assert "Tested: 4" in output
    seen = set(re.findall(r'"status_code": ?(\d+)', report.read_text()))
    assert seen >= {"200", "201", "304", "400", "401", "404", "405", "412", "415", "422"}


def replaced(old: str, new: str) -> Callable[[str], str]:
    """Return what changes a part of a source, which is there once."""

    def change(text: str) -> str:
        assert text.count(old) == 1, f"the sample has {old!r} {text.count(old)} times"
        return text.replace(old, new)

    return change


MUTANTS = {
    "Server error": replaced("    if row is None:\n        raise unknown_user()\n", ""),
    "Undocumented status code": replaced("Answer(200, page.", "Answer(206, page."),
    "Undocumented Content-Type": replaced(
        "page.model_dump_json().encode()", 'b"none", {"Content-Type": "text/plain"}'
    ),
    "Missing required response headers": replaced("version=user.version", "version=None"),
    "Response violates schema": replaced(
        "user.model_dump_json().encode()", 'user.model_dump_json(exclude={"name"}).encode()'
    ),
}
"""A failure as schemathesis names it, and a handler that has it."""


@pytest.mark.parametrize("failure", MUTANTS)
def test_a_broken_handler_is_found(
    cloud: LocalCloud, schemathesis: Schemathesis, failure: str
) -> None:
    """The check is not blind: each of these handlers breaks a promise of the document."""
    with mutant_function(cloud, "users", MUTANTS[failure]):
        code, output = schemathesis.run("--phases=examples,coverage", "--max-failures=1")
    assert code == 1, output
    assert failure in output


def test_the_page_shows_the_operations_and_asks_no_other_host(cloud: LocalCloud) -> None:
    """In a real browser: no error, no file of another host, and a request with a token works."""
    with started() as browser:
        page, seen = browser.new_page(), Seen()
        seen.follow(page)
        page.goto(f"{cloud.url}/swagger")
        shown = page.locator(".opblock-summary")
        expect(shown).to_have_count(4)
        operations = {" ".join(text.split()[:2]) for text in shown.all_inner_texts()}
        page.locator(".btn.authorize").click()
        page.locator(".auth-container input").fill(cloud.token(str(uuid.uuid4())))
        page.locator(".auth-btn-wrapper .authorize").click()
        page.locator(".auth-btn-wrapper .btn-done").click()
        shown.filter(has_text="List the caller's users").click()
        page.locator(".try-out__btn").click()
        page.locator(".execute").click()
        answer = page.locator(".live-responses-table .response .response-col_status")
        expect(answer).to_have_text(re.compile("200"))
    item = "/users/{user_id}"
    assert operations == {"GET /users", "POST /users", f"GET {item}", f"PATCH {item}"}
    assert seen.urls == [f"{cloud.url}/swagger", f"{cloud.url}/users?limit=20"]
    assert seen.errors == []
