"""docs/your-first-function.md, as its reader: an ordinary user with an empty home and the wheels.

Every command of the page is run, in its order, and every file of it is written. Before the page's
end the project goes to the next version of both packages, which the test builds.
"""

import json
import re
import threading
import time
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest

from lambda_pg_cdk import PROJECT, __version__
from lambda_pg_cdk.tools.release import DISTRIBUTIONS, build_distribution
from tests.support import page
from tests.support.ordinary_user import CACHES, Shell, User, ordinary_user
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.once, pytest.mark.timeout(1800)]  # the first run downloads everything

PAGE = PROJECT / "docs" / "your-first-function.md"
LAST = "The end"
NEXT = "99.0.0"
WATCH = "make watch\n"
ANSWER = 300.0
"""Seconds to wait for what a busy machine does in a few."""

NEXT_VERSION = {
    "layer/python/lambda_pg/__init__.py": {
        f'__version__ = "{__version__}"': f'__version__ = "{NEXT}"'
    },
    "stage/config.py": {
        '    stage: str\n    app: str = setting(\n        "lambda-pg",': (
            '    stage: str\n    team: str = setting("nobody", "the team")\n'
            '    app: str = setting(\n        "lambda-pg",'
        )
    },
    "stacks/api.py": {
        '        CfnOutput(self, "ApiUrl"': (
            '        CfnOutput(self, "Team", value=config.team)\n        CfnOutput(self, "ApiUrl"'
        )
    },
}
"""Changes of the next version: its number, a setting, and an output of a template."""

NEXT_MIGRATION = '''"""A revision of the base."""

from alembic import op

revision = "lambda_pg_{number}"
down_revision = "{newest}"


def upgrade() -> None:
    """Apply the revision."""
    op.execute("CREATE FUNCTION next_version() RETURNS int LANGUAGE sql RETURN 99")
'''

LOOK = """
import json, psycopg
from lambda_pg_cdk.local.cloud import LocalCloud
cloud = LocalCloud()
stacks = cloud.client("cloudformation").describe_stacks()["Stacks"]
outputs = {o["OutputKey"]: o["OutputValue"] for s in stacks for o in s.get("Outputs", [])}
with psycopg.connect(cloud.status()["postgres"]["dsn"]) as connection:
    rows = connection.execute("SELECT version_num FROM alembic_version ORDER BY 1").fetchall()
    (made,) = connection.execute("SELECT to_regproc('next_version') IS NOT NULL").fetchone()
print(json.dumps({"outputs": outputs, "revisions": [row for (row,) in rows], "made": made}))
"""

NAG = """
import json, runpy
import aws_cdk, cdk_nag

class App(aws_cdk.App):
    def __init__(self):
        context = json.load(open("cdk.json"))["context"]
        super().__init__(outdir=f"build/nag-{stage}", context=context | {"stage": stage})
        for pack in (cdk_nag.AwsSolutionsChecks, cdk_nag.ServerlessChecks):
            aws_cdk.Validations.of(self).add_plugins(pack(self))

aws_cdk.App = App
found = {}
for stage in ("dev", "prod"):
    runpy.run_path("app.py")
    reports = json.load(open(f"build/nag-{stage}/validation-report.json"))["pluginReports"]
    found[stage] = {report["pluginName"]: report["violations"] for report in reports}
print(json.dumps(found))
"""
"""The project's app.py with both rule sets; it fails where a finding is open."""


class Reader:
    """Does what the page says."""

    def __init__(self, user: User) -> None:
        """Open the first terminal."""
        self.user, self.shell = user, Shell(user)
        self.project = user.home / "my-api"
        self.seconds: dict[str, float] = {}
        self.said = ""
        self.told: dict[str, str] = {}
        self._watch: Watch | None = None

    def follow(self, heading: str, steps: list[page.Step]) -> None:
        """Do the steps under a heading."""
        began = time.monotonic()
        for step in steps:
            if step.text == WATCH:
                self._watch = Watch(self.user, self.project)
            elif step.kind == "sh":
                self.told[step.text] = self.said = self.shell.run(step.text)
            elif step.kind == "text":
                assert page.shows(self.said, step.text), f"{step.text}\nis not in\n{self.said}"
            else:
                page.write(step, self.project)
                if self._watch:
                    self._watch.wait_for(": new code, ")
        if self._watch:
            self._watch.close()
            self._watch = None
        self.note(heading, began)

    def note(self, what: str, began: float) -> None:
        """Print what was done, and its seconds."""
        self.seconds[what] = time.monotonic() - began
        print(f"{self.seconds[what]:6.1f} s  {what}", flush=True)

    def python(self, program: str) -> str:
        """Run a program with the project's interpreter; return its last line."""
        said = self.shell.run(f".venv/bin/python - <<'PROGRAM'\n{program}\nPROGRAM")
        return said.strip().splitlines()[-1]


class Watch:
    """A second terminal with `make watch`."""

    def __init__(self, user: User, project: Path) -> None:
        """Start it, and wait until it watches."""
        self._process = user.start(["make", "watch"], project)
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self._user = user
        self.wait_for("watching")

    def _read(self) -> None:
        assert self._process.stdout is not None
        self._said.extend(self._process.stdout)

    def wait_for(self, text: str) -> None:
        """Wait until it says this."""
        wait_until(
            lambda: any(text in line for line in self._said), ANSWER, f"{text}: {self._said}"
        )

    def close(self) -> None:
        """Press Ctrl-C."""
        self._user.interrupt(self._process)
        self._process.wait(60)
        self._reader.join()
        assert "no longer watching" in "".join(self._said)


@pytest.fixture
def user() -> Iterator[User]:
    """An ordinary user who has the wheels of this checkout."""
    with ordinary_user() as someone:
        build(PROJECT, someone.wheels)
        yield someone


def build(tree: Path, folder: Path) -> None:
    """Build the wheels of both packages."""
    for source in DISTRIBUTIONS.values():
        build_distribution(tree / source.relative_to(PROJECT), folder)
    for archive in folder.glob("*.tar.gz"):
        archive.unlink()


def next_version(tree: Path) -> Path:
    """Make the next version of a copy of this repository."""
    for name, changes in NEXT_VERSION.items():
        text = (tree / name).read_text()
        for before, after in changes.items():
            assert text.count(before) == 1, (name, before)
            text = text.replace(before, after)
        (tree / name).write_text(text)
    base = tree / "migrations" / "base"
    newest = max(path.name[:4] for path in base.glob("[0-9]*.py"))
    number = f"{int(newest) + 1:04}"
    text = NEXT_MIGRATION.format(number=number, newest=f"lambda_pg_{newest}")
    (base / f"{number}_next.py").write_text(text)
    return tree


def test_the_page_is_followed_and_the_next_version_comes(user: User, tree: Path) -> None:
    """To an answer, a table, templates of prod and an upgrade; in the end nothing is left."""
    state = "warm" if (CACHES / "complete").exists() else "cold"
    print(f"\nyour-first-function.md, with {state} caches in {CACHES}")
    reader = Reader(user)
    steps = {heading: list(each) for heading, each in groupby(page.read(PAGE), lambda s: s.heading)}
    end = steps.pop(LAST)
    for heading, each in steps.items():
        reader.follow(heading, each)
        if heading == "The local cloud":
            total = reader.seconds["A project"] + reader.seconds["The local cloud"]
            said = reader.told["make up\n"]
            assert "migration:" not in said  # a warning about the new project's table
            assert re.search(r'curl -i -H "Authorization: Bearer \$TOKEN" \S+/orders\n', said)
            print(f"{total:6.1f} s from the empty folder to the first answer", flush=True)
    check_the_rules(reader)
    upgrade(reader, tree)
    assert len(user.processes()) > 10  # of which none may stay
    reader.follow(LAST, end)
    assert not (user.home / ".local" / "state" / "lambda-pg").exists()
    assert [*user.temporary.iterdir()] == []
    shell = 1  # which the reader still has
    wait_until(lambda: len(user.processes()) == shell, what="the end of the cloud's processes")
    (CACHES / "complete").touch()


def check_the_rules(reader: Reader) -> None:
    """Synthesise dev and prod with cdk-nag: nothing is found."""
    began = time.monotonic()
    lock = (PROJECT / "requirements" / "dev.txt").read_text()
    pins = re.findall(r"(?m)^cdk-nag==\S+", lock)
    reader.shell.run(f".venv/bin/python -m pip install --quiet {pins[0]}")
    for stage, found in json.loads(reader.python(NAG)).items():
        assert found.keys() >= {"AwsSolutions", "Serverless"}
        assert not any(found.values()), (stage, found)
    reader.note("dev and prod, with cdk-nag", began)


def upgrade(reader: Reader, copy: Path) -> None:
    """Take the next version: rows and the app's revisions stay, the base's new one is applied."""
    began = time.monotonic()
    build(next_version(copy), reader.user.wheels)
    reader.note("the next version's wheels", began)
    before = json.loads(reader.python(LOOK))
    assert "Team" not in before["outputs"]
    assert not before["made"]
    began = time.monotonic()
    for name, old, new in (
        ("requirements.txt", f"=={__version__}", f"=={NEXT}"),
        ("cdk.json", '"local": {', '"local": { "team": "orders",'),
    ):
        text = (reader.project / name).read_text()
        assert text.count(old) == 1
        (reader.project / name).write_text(text.replace(old, new))
    reader.shell.run("make setup test redeploy")
    reader.note("make setup test redeploy, with the next version", began)
    after = json.loads(reader.python(LOOK))
    assert after["outputs"]["Team"] == "orders"
    assert after["made"]
    apps = [each for each in before["revisions"] if not each.startswith("lambda_pg_")]
    assert apps == ["0002"]
    assert set(apps) < set(after["revisions"]) != set(before["revisions"])
    assert len(after["revisions"]) == 2
    assert page.shows(reader.shell.run(NOTES), '[{"body": "call Ada"}, {"body": "buy milk"}]')
    version = ".venv/bin/python -m lambda_pg_cdk --version"
    assert reader.shell.run(version).strip() == f"lambda-pg-cdk {NEXT}"


NOTES = 'curl -s -H "$AUTH" "$API/notes"'
