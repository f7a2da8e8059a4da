"""PgBouncer's files on disk: private, complete at any moment, owned by who reads them."""

from __future__ import annotations

import pwd
import secrets
import ssl
from collections.abc import Mapping
from os import chown
from pathlib import Path
from urllib.parse import quote, urlencode

from .configuration import (
    Console,
    Files,
    Group,
    User,
    render_access,
    render_ini,
    render_users,
)
from .relay import Relay
from .secret_store import Certificate, Content, SecretUnusableError
from .settings import Settings, SettingsError


class Folder:
    """Writes what PgBouncer reads, with new console logins for each start."""

    def __init__(self, settings: Settings) -> None:
        """Check the folder; raise SettingsError when nothing can be written there."""
        self.files = Files(settings.run_dir)
        self._settings = settings
        self._admin, self._observer = _login("admin"), _login("observer")
        self.console = Console(self._admin.name, self._observer.name)
        self.admin = (self._admin.name, self._admin.password)
        self._written: dict[str, str] = {}
        self._users: tuple[User, ...] = ()
        self._group: Group | None = None
        try:
            settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._owner = _owner(settings.pgbouncer_user)
            self.files.alive.unlink(missing_ok=True)
            self.join(None)
            self._write(
                {
                    "access.conf": render_access(settings, self.console),
                    "admin_dsn": self._admin_dsn(),
                }
            )
        except OSError as error:
            raise SettingsError(
                f"RUN_DIR is {settings.run_dir}, where nothing can be written: {error}"
            ) from error

    def join(self, group: Group | None) -> bool:
        """Write the main file with the tasks that are known; tell whether anything has changed.

        Raise OSError where that cannot be done: the old file stays.
        """
        self._group = group
        return self._write(self._main())

    def make_relay(self) -> Relay:
        """Make the socket that stands for the peers, for PgBouncer's account only."""
        path = self._settings.relay
        path.parent.mkdir(mode=0o700, exist_ok=True)
        relay = Relay(path, self._settings.listen_port)
        if self._owner is not None:
            for owned in (path.parent, path):
                chown(owned, *self._owner)
        return relay

    def update(self, content: Content) -> bool:
        """Write users and certificate; tell whether anything has changed.

        Raise OSError where that cannot be done: the old files stay, all of them.
        """
        self._users = content.users
        users = [self._admin, self._observer, *content.users]
        return self._write(
            self._main()
            | {"users.txt": render_users(users), "certificate.pem": content.certificate.pem}
        )

    def _main(self) -> dict[str, str]:
        parts = (self._settings, self.files, self.console, self._users, self._group)
        return {"pgbouncer.ini": render_ini(*parts)}

    def check(self, certificate: Certificate) -> None:
        """Raise SecretUnusableError for a certificate that does not load, or not with its key.

        Raise OSError where it cannot be written.
        """
        path = self.files.folder / "certificate.check"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self._fill(path, certificate.pem)
            # The password keeps OpenSSL from asking the terminal for that of an encrypted key.
            context.load_cert_chain(path, password="-")  # noqa: S106
        except (ssl.SSLError, ValueError) as error:
            raise SecretUnusableError(f"its certificate and key do not load: {error}") from error
        finally:
            path.unlink(missing_ok=True)

    def show_alive(self) -> None:
        """Renew the time of the file that the container's health check looks at."""
        self.files.alive.touch(mode=0o600)

    def _admin_dsn(self) -> str:
        query = urlencode({"host": self._settings.run_dir, "port": self._settings.listen_port})
        return f"postgresql://{self._admin.name}:{quote(self._admin.password)}@/pgbouncer?{query}"

    def _write(self, texts: Mapping[str, str]) -> bool:
        """Write files, for their owner only; tell whether any has another text than before.

        Only when all of them are on the disk do they take the place of the old ones.
        """
        changed = {name: text for name, text in texts.items() if self._written.get(name) != text}
        fresh = {name: self.files.folder / f"{name}.new" for name in changed}
        try:
            for name, text in changed.items():
                self._fill(fresh[name], text)
        except OSError:
            for path in fresh.values():
                path.unlink(missing_ok=True)
            raise
        for name, path in fresh.items():
            path.rename(self.files.folder / name)
        self._written.update(changed)
        return bool(changed)

    def _fill(self, path: Path, text: str) -> None:
        """Make a private file; raise OSError, which names it."""
        try:
            path.unlink(missing_ok=True)
            path.touch(mode=0o600)
            path.write_text(text)
            if self._owner is not None:
                chown(path, *self._owner)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error


def _login(role: str) -> User:
    return User(f"{role}-{secrets.token_hex(4)}", secrets.token_urlsafe(24))


def _owner(user: str) -> tuple[int, int] | None:
    """Look up the account that PgBouncer runs as, where it is not the supervisor's own."""
    if not user:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise SettingsError(f"PGBOUNCER_USER is {user!r}, which is no account here") from None
    return entry.pw_uid, entry.pw_gid
