"""What the command line starts a local cloud with."""

from pathlib import Path
from typing import Any

import pytest

from lambda_pg_cdk.local import cli
from lambda_pg_cdk.local.options import Options


class Started(Exception):  # noqa: N818 - it ends a command that would wait
    """Carries the options."""


@pytest.mark.parametrize(("given", "start"), [([], "restored"), (["--cold"], "cold")])
def test_cold_starts_are_asked_for_by_name(
    monkeypatch: pytest.MonkeyPatch, given: list[str], start: str
) -> None:
    """Without it, requests start restored environments; the daemon gets the choice."""

    class Cloud:
        folder = Path("nowhere")

        def __init__(self, options: Options, **_: Any) -> None:
            self._options = options

        def start(self) -> None:
            raise Started(Options.parse(self._options.dump()))

    monkeypatch.setattr(cli, "LocalCloud", Cloud)
    with pytest.raises(Started) as found:
        cli.main(["up", *given])
    assert found.value.args[0].start == start
