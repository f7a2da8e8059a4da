"""PgBouncer's files on disk: private, complete at any moment, owned by who reads them."""

from __future__ import annotations

import pwd
import secrets
import ssl
from os import chown
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
from .settings import Settings, SettingsError
from .vault import Certificate, Content, SecretUnusableError


class Folder:
    """Writes what PgBouncer reads, with new console logins for each start."""

    def __init__(self, settings: Settings) -> None:
        """Check the folder; raise SettingsError when nothing can be written there."""
        self.files = Files(settings.run_dir)
        self._settings = settings
        self._admin, self._observer = _login("admin"), _login("observer")
        self.console = Console(self._admin.name, self._observer.name)
        self._written: dict[str, str] = {}
        try:
            settings.run_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._owner = _owner(settings.pgbouncer_user)
            self.join(None)
        except OSError as error:
            raise SettingsError(
                f"RUN_DIR is {settings.run_dir}, where nothing can be written: {error}"
            ) from error
        self._write("access.conf", render_access(settings, self.console))
        self._write("admin_dsn", self._admin_dsn())

    def join(self, group: Group | None) -> bool:
        """Write the main file with the tasks that are known; tell whether anything has changed."""
        return self._write(
            "pgbouncer.ini", render_ini(self._settings, self.files, self.console, group)
        )

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
        """Write users and certificate; tell whether anything has changed."""
        users = [self._admin, self._observer, *content.users]
        changed = self._write("users.txt", render_users(users))
        return self._write("certificate.pem", content.certificate.pem) or changed

    def check(self, certificate: Certificate) -> None:
        """Raise SecretUnusableError for a certificate that does not load, or not with its key."""
        self._write("certificate.check", certificate.pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # The password keeps OpenSSL from asking the terminal for that of an encrypted key.
            context.load_cert_chain(self.files.folder / "certificate.check", password="-")  # noqa: S106
        except (ssl.SSLError, ValueError) as error:
            raise SecretUnusableError(f"its certificate and key do not load: {error}") from error
        finally:
            (self.files.folder / "certificate.check").unlink()
            self._written.pop("certificate.check")

    def _admin_dsn(self) -> str:
        query = urlencode({"host": self._settings.run_dir, "port": self._settings.listen_port})
        return f"postgresql://{self._admin.name}:{quote(self._admin.password)}@/pgbouncer?{query}"

    def _write(self, name: str, text: str) -> bool:
        """Write a file in one step, for its owner only; tell whether it is another text."""
        if self._written.get(name) == text:
            return False
        path = self.files.folder / name
        fresh = path.with_name(f"{name}.new")
        fresh.unlink(missing_ok=True)
        fresh.touch(mode=0o600)
        fresh.write_text(text)
        if self._owner is not None:
            chown(fresh, *self._owner)
        fresh.rename(path)
        self._written[name] = text
        return True


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
