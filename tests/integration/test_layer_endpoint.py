"""What a real libpq makes of the connects that the layer asks for."""

from __future__ import annotations

import pytest

from tests.integration.layer import Open, scalar


def test_options_of_the_environment_do_not_pass_the_settings_by(
    open_database: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What libpq would read of its own accord has no effect; what the settings took has."""
    monkeypatch.setenv("PGOPTIONS", "-c search_path=of_libpq")
    assert scalar(open_database(), "SHOW search_path") != "of_libpq"
    chosen = open_database(options="-c search_path=of_settings")
    assert scalar(chosen, "SHOW search_path") == "of_settings"
