"""PgBouncer's files on disk: private, always complete, and owned by PgBouncer's account."""

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
    """Writes PgBouncer's files, with new console logins for each start."""

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
                f"RUN_DIR is {settings.run_dir}, but nothing can be written there: {error}"
            ) from error

    def join(self, group: Group | None) -> bool:
        """Write the main file with the known tasks; tell whether it has changed.

        Raise OSError if that fails: the old file stays.
        """
        self._group = group
        return self._write(self._main())

    def make_relay(self) -> Relay:
        """Create the socket that stands for the peers, for PgBouncer's account only."""
        path = self._settings.relay
        path.parent.mkdir(mode=0o700, exist_ok=True)
        relay = Relay(path, self._settings.listen_port)
        if self._owner is not None:
            for owned in (path.parent, path):
                chown(owned, *self._owner)
        return relay

    def update(self, content: Content) -> bool:
        """Write users and certificate; tell whether anything has changed.

        Raise OSError if that fails: all old files stay.
        """
        self._users = content.users + content.sql_users
        users = [self._admin, self._observer, *self._users]
        access = render_access(self._settings, self.console, content.users, content.sql_users)
        # The rules first: PgBouncer may read the users before it is asked to.
        return self._write(
            {"access.conf": access}
            | self._main()
            | {"users.txt": render_users(users), "certificate.pem": content.certificate.pem}
        )

    def _main(self) -> dict[str, str]:
        parts = (self._settings, self.files, self.console, self._users, self._group)
        return {"pgbouncer.ini": render_ini(*parts)}

    def check(self, certificate: Certificate) -> None:
        """Raise SecretUnusableError for a certificate that does not load with its key.

        Raise OSError if it cannot be written.
        """
        path = self.files.folder / "certificate.check"
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            self._fill(path, certificate.pem)
            # The password keeps OpenSSL from asking the terminal for that of an encrypted key.
            context.load_cert_chain(path, password="-")  # noqa: S106 - not a secret
        except (ssl.SSLError, ValueError) as error:
            raise SecretUnusableError(f"its certificate and key do not load: {error}") from error
        finally:
            path.unlink(missing_ok=True)

    def show_alive(self) -> None:
        """Renew the time of the file that the container's health check reads."""
        self.files.alive.touch(mode=0o600)

    def _admin_dsn(self) -> str:
        query = urlencode({"host": self._settings.run_dir, "port": self._settings.listen_port})
        return f"postgresql://{self._admin.name}:{quote(self._admin.password)}@/pgbouncer?{query}"

    def _write(self, texts: Mapping[str, str]) -> bool:
        """Write files, for their owner only; tell whether the text of any has changed.

        They replace the old files only after all of them are on the disk.
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
    """Return the ids of PgBouncer's account, if it is not the supervisor's own."""
    if not user:
        return None
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        raise SettingsError(f"PGBOUNCER_USER is {user!r}, but there is no such account") from None
    return entry.pw_uid, entry.pw_gid
