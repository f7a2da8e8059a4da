"""The file of registered statements is read at synthesis: a wrong one would stop the function."""

from pathlib import Path

import pytest

from lambda_pg_cdk.stage.loading import load_stage


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "sql.statements is 'sql.json'; must be a file below"),
        ("{", "is not JSON"),
        ('{"a": {"sql": "SELECT 1", "read": true}}', "'a' has the unknown fields"),
        ('{"a": {"sql": "SELECT 1", "reads": true}}', ""),
    ],
)
def test_a_wrong_file_of_statements_is_not_deployed(
    text: str | None, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Synthesis says what the function would say when it starts."""
    from lambda_pg_cdk.stacks import app

    monkeypatch.setattr(app, "PROJECT", tmp_path)
    if text is not None:
        (tmp_path / "sql.json").write_text(text)
    config = load_stage("dev", {"sql": {"enabled": True, "statements": "sql.json"}})
    found = " ".join(app._statements_problems(config))
    assert message in found
    assert bool(found) == bool(message)
