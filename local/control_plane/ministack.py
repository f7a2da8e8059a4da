"""The control plane's process: MiniStack, with the additions of `local/control_plane`."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from lambda_pg_cdk.local import processes
from lambda_pg_cdk.local.install import installed
from lambda_pg_cdk.local.paths import import_root

_START_SECONDS = 60.0  # it usually takes 2 s; on a busy machine it has taken ten times as long


class ControlPlane:
    """MiniStack on a port of 127.0.0.1, in its own folder."""

    def __init__(self, home: Path, port: int, variables: Mapping[str, str]) -> None:
        """Take its folder, its port and its environment; nothing is started yet."""
        self._home = home
        self._port = port
        self._variables = variables
        self._log = home / "ministack.log"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Start it and wait until it answers; raise with the end of its log."""
        python = await asyncio.to_thread(installed.control_plane_python)
        with processes.open_log(self._log, "wb") as output:
            self._process = await asyncio.create_subprocess_exec(
                str(python), "-m", "lambda_pg_cdk.local.control_plane",
                cwd=import_root(self._home), env=self._variables,
                stdin=asyncio.subprocess.DEVNULL, stdout=output, stderr=output,
                start_new_session=True,
            )  # fmt: skip
        await self._until_it_answers(self._process)

    async def _until_it_answers(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            if process.returncode is not None:
                log = processes.last_lines(self._log)
                raise RuntimeError(f"the control plane has ended:\n{log}")
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self._port)
            except ConnectionRefusedError:
                if time.monotonic() > deadline:
                    log = processes.last_lines(self._log)
                    raise TimeoutError(f"the control plane does not answer:\n{log}") from None
                await asyncio.sleep(0.02)
                continue
            writer.close()
            return

    async def close(self) -> None:
        """Kill it; on SIGTERM it does not end reliably."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self._process.kill()
            await self._process.wait()


def control_plane_variables(
    home: Path,
    ports: tuple[int, int],
    account: str,
    region: str,
    control_url: str,
    key: str,
    fronts: Sequence[int] = (),
) -> dict[str, str]:
    """Return the whole environment of the control plane; makes its folder for files.

    `ports`: of all services, and of Secrets Manager alone. `fronts`: ports of this cloud that
    pass requests on to it unchanged.
    """
    port, secrets_port = ports
    home.mkdir(mode=0o700, exist_ok=True)
    (home / "tmp").mkdir(exist_ok=True)
    return {
        **processes.base_environment(),
        "BIND_HOST": "127.0.0.1",
        "MINISTACK_HOST": "127.0.0.1",
        "GATEWAY_PORT": str(port),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "MINISTACK_ACCOUNT_ID": account,
        "MINISTACK_REGION": region,
        "STATE_DIR": str(home / "state"),
        "S3_DATA_DIR": str(home / "s3"),
        "TMPDIR": str(home / "tmp"),
        "DOCKER_HOST": f"unix://{home}/no-docker",
        "PYTHONDONTWRITEBYTECODE": "1",
        "AWS_SECRET_ACCESS_KEY": key,  # MiniStack's Node.js workers sign with it too
        "LAMBDA_PG_CONTROL_URL": control_url,
        "LAMBDA_PG_PORTS": " ".join(map(str, (port, *fronts))),
        "LAMBDA_PG_SECRETS_PORT": str(secrets_port),
    }
