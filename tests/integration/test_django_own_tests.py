"""Django's own tests of its backends and its transactions, run over the layer's backend.

They come from Django's source package, of the version and with the hash that requirements/dev.txt
pins; pip fetches it once, and the tests are skipped where it cannot.
"""

import os
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from lambda_pg.testing import Server

from lambda_pg_cdk.layer.cache import cache_dir
from lambda_pg_cdk.local.install.installed import complete

pytest_plugins = ["lambda_pg.testing"]

ROOT = Path(__file__).resolve().parents[2]
LAYER = ROOT / "layer" / "python"
LABELS = ("backends", "transactions")
RAN_AT_LEAST = 400

SETTINGS = """
DATABASES = {
    "default": {"ENGINE": "lambda_pg.django", "NAME": "main"},
    "other": {"ENGINE": "lambda_pg.django", "NAME": "second"},
}
SECRET_KEY = "of tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
DEFAULT_AUTO_FIELD = "django.db.models.AutoField"
USE_TZ = False
"""

POSTGRESQL = "backends.postgresql.tests.Tests."
REFUSED = {
    # These set OPTIONS, of which the backend knows `direct` only, or a password.
    *(
        POSTGRESQL + name
        for name in (
            "test_bypass_role_configuration",
            "test_bypass_timezone_configuration",
            "test_client_encoding_utf8_enforce",
            "test_compose_sql_when_no_connection",
            "test_connect_and_rollback",
            "test_connect_custom_cursor_factory",
            "test_connect_invalid_isolation_level",
            "test_connect_isolation_level",
            "test_connect_no_is_usable_checks",
            "test_connect_non_autocommit",
            "test_connect_pool",
            "test_connect_pool_set_to_true",
            "test_connect_pool_with_timezone",
            "test_connect_role",
            "test_connect_server_side_binding",
            "test_pooling_health_checks",
        )
    ),
    "backends.tests.BackendTestCase.test_unicode_password",
}
SAME_CONNECTION = {
    # A closed connection is in the layer's pool, which gives out the same one again.
    "backends.base.test_base.ConnectionHealthChecksTests.test_health_checks_enabled",
    "backends.base.test_base.ConnectionHealthChecksTests.test_set_autocommit_health_checks_enabled",
}


def pinned() -> str:
    """Return the lines of the lock that pin Django."""
    lock = (ROOT / "requirements" / "dev.txt").read_text()
    (lines,) = re.findall(r"(?m)^django==.+(?:\n +--hash=.+)+", lock)
    return str(lines)


@pytest.fixture(scope="module")
def django_tests() -> Path:
    """The folder `tests` of Django's source package."""
    version = re.findall(r"==([\d.]+)", pinned())[0]

    def fetch(folder: Path) -> None:
        folder.mkdir()
        requirements = folder / "requirements.txt"
        requirements.write_text(pinned())
        options = ["--quiet", "--no-input", "--no-deps", "--no-binary", "django"]
        command = [sys.executable, "-m", "pip", "download", *options, "--require-hashes"]
        command += ["-r", str(requirements), "-d", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        if done.returncode != 0:
            pytest.skip(f"pip cannot fetch Django's source package: {done.stderr.strip()[-300:]}")
        with tarfile.open(folder / f"django-{version}.tar.gz") as package:
            package.extractall(folder, filter="data")

    folder = complete(cache_dir() / f"django-tests-{version}", fetch)
    return folder / f"django-{version}" / "tests"


@pytest.mark.once
def test_django_s_own_tests_hold(
    django_tests: Path, lambda_pg_server: Server, tmp_path: Path
) -> None:
    """All of them pass but those named above, each for a reason that the page gives."""
    (tmp_path / "over_layer.py").write_text(SETTINGS)
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
    environment = inherited | {
        "DATABASE_URL": lambda_pg_server.url,
        "LAMBDA_PG_ALLOW_UNVERIFIED_TLS": "1",
        "LAMBDA_PG_SLOTS": "8",
        "PYTHONPATH": f"{LAYER}:{tmp_path}",
    }
    command = [sys.executable, "runtests.py", "--settings=over_layer", "--parallel=1"]
    command += ["--noinput", "--verbosity=0", *LABELS]
    done = subprocess.run(
        command, cwd=django_tests, env=environment, capture_output=True, text=True, check=False
    )
    ran = re.findall(r"(?m)^Ran (\d+) tests", done.stderr)
    assert ran, done.stdout + done.stderr
    assert int(ran[0]) >= RAN_AT_LEAST
    failed = set(re.findall(r"(?m)^(?:ERROR|FAIL): \w+ \(([\w.]+)\)", done.stderr))
    assert failed == REFUSED | SAME_CONNECTION, done.stderr
