"""PostgreSQL servers whose data folder is a copy: initdb takes half a second of processor."""

import hashlib
import subprocess
import tempfile
from functools import partial
from pathlib import Path

import psycopg
from psycopg import sql

from lambda_pg_cdk.layer.cache import cache_dir
from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install.installed import complete
from lambda_pg_cdk.local.install.postgres_discovery import PostgresBinaries
from lambda_pg_cdk.local.paths import shareable
from lambda_pg_cdk.local.servers.postgres import SUPERUSER, Postgres
from tests.support.servers import hash_once


class CopiedPostgres(Postgres):
    """A server as any other, but that it begins with a copy of a data folder that was made once."""

    def _initialise(self) -> None:
        copy(template_of(self.binaries), shareable(self.folder))
        processes.make_private_folder(self._socket, self._account)
        self._write_certificate()


def template_of(binaries: PostgresBinaries) -> Path:
    """Return the folder with what initdb makes, and with the superuser's password."""
    programs = hashlib.sha256(str(binaries.folder).encode()).hexdigest()[:16]
    folder = cache_dir() / f"server-of-tests-{binaries.major}-{programs}"
    return complete(folder, partial(_make_template, binaries))


def _make_template(binaries: PostgresBinaries, folder: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="lpg-", dir="/tmp") as place:
        server = Postgres(binaries, Path(place) / "pg", port=processes.free_port(), durable=False)
        Path(place).chmod(0o711)
        try:
            server.start()
            with psycopg.connect(server.superuser_dsn, autocommit=True) as admin:
                hash_once(admin)
                password = sql.Literal((server.folder / "superuser").read_text())
                change = sql.SQL("ALTER ROLE {} PASSWORD {}")
                admin.execute(change.format(sql.Identifier(SUPERUSER), password))
        finally:
            server.stop()
        folder.mkdir(mode=0o700, parents=True)
        copy(server.folder, folder)


def copy(source: Path, target: Path) -> None:
    """Copy data folder and password, with their owner, into a folder that is there."""
    parts = [str(source / name) for name in ("data", "superuser")]
    subprocess.run(["cp", "-a", *parts, str(target)], check=True)
