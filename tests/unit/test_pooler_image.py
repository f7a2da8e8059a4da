"""The pooler's image and local mode run the same files."""

from __future__ import annotations

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

from local.pgbouncer import Pooler
from local.pgbouncer_discovery import OLDEST
from pgbouncer.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
DOCKERFILE = (ROOT / "pgbouncer" / "Dockerfile").read_text()
ROOTS_OF_RDS = "layer/python/lambda_pg/certs/aws.pem"


def copies() -> dict[Path, str]:
    """List what the Dockerfile copies: file of the repository → folder of the image."""
    lines = re.findall(r"^COPY (\S+) (\S+)$", DOCKERFILE, re.MULTILINE)
    return {file: target for pattern, target in lines for file in ROOT.glob(pattern)}


def test_the_image_holds_exactly_the_tree_that_local_mode_runs() -> None:
    """Every module of pgbouncer/ and the roots of RDS, and nothing else."""
    tree = {path for path in (ROOT / "pgbouncer").rglob("*") if path.is_file()}
    modules = {path for path in tree if "__pycache__" not in path.parts} - {
        ROOT / "pgbouncer" / "Dockerfile",
        ROOT / "pgbouncer" / "pgbouncer.lock",
    }
    assert set(copies()) == modules | {ROOT / ROOTS_OF_RDS}
    assert DOCKERFILE.count("COPY") == 2


def test_the_image_starts_what_local_mode_starts() -> None:
    """Both run the package as a module, from the folder above it."""
    assert 'ENTRYPOINT ["python3", "-m", "pgbouncer"]' in DOCKERFILE
    assert '[sys.executable, "-m", "pgbouncer"]' in inspect.getsource(Pooler)


def test_the_copied_tree_runs_by_itself(tmp_path: Path) -> None:
    """Nothing of the repository besides the copied files is needed; the bundle is found."""
    for file, target in copies().items():
        (tmp_path / target.strip("/")).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / target.strip("/"))
    folder = re.search(r"^WORKDIR /(\S+)$", DOCKERFILE, re.MULTILINE)
    assert folder is not None
    run = subprocess.run(
        [sys.executable, "-m", "pgbouncer"],
        cwd=tmp_path / folder[1],
        env={},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 78
    assert "DATABASE_HOST is missing" in run.stderr
    assert "SERVER_TLS_CA_FILE" not in run.stderr


def test_the_image_refuses_an_old_pgbouncer_and_drops_root() -> None:
    """The version that local mode asks for is the one that the build asks for."""
    assert f"ARG PGBOUNCER_AT_LEAST={'.'.join(map(str, OLDEST))}" in DOCKERFILE
    assert re.search(r"^USER 10001:10001$", DOCKERFILE, re.MULTILINE)


def test_the_image_needs_one_writable_folder_and_no_privilege() -> None:
    """The root filesystem can be read-only, and the account gets back nothing that it lacks."""
    (folder,) = re.findall(r'^VOLUME \["(\S+)"\]$', DOCKERFILE, re.MULTILINE)
    default = inspect.getsource(Settings.from_env)
    assert f'environment.get("RUN_DIR") or "{folder}"' in default
    assert f"--owner=pooler --group=pooler {folder}\n" in DOCKERFILE
    assert "PYTHONDONTWRITEBYTECODE=1" in DOCKERFILE
    assert not re.search(r"setcap|sudo|gosu|chmod \S*s|mode=[2-7][0-7]{3}", DOCKERFILE)
    assert re.findall(r"^(USER|ENTRYPOINT|CMD|RUN)\b", DOCKERFILE, re.MULTILINE)[-2:] == [
        "USER",
        "ENTRYPOINT",
    ]
