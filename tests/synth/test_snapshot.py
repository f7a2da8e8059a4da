"""What a stage deploys, to the letter: a change of any template shows in review.

`python -m tests.synth.test_snapshot` writes the snapshot again.
"""

import difflib
import json
import re
import tempfile
from pathlib import Path

from tests.support.templates import Stage, synthesise

FOLDER = Path(__file__).parent / "snapshot"
STAGE = "prod"


def rendered(stage: Stage) -> dict[str, str]:
    """Write each template as text, without what changes with every edit of code: asset hashes."""
    return {
        name: masked(json.dumps(template, indent=1, sort_keys=True)) + "\n"
        for name, template in stage.templates.items()
    }


def masked(text: str) -> str:
    """Replace the hashes of assets and of function versions by marks."""
    text = re.sub(r"[0-9a-f]{64}", "ASSET", text)
    return re.sub(r"(CurrentVersion[0-9A-F]{8})[0-9a-f]{32}", r"\1HASH", text)


def test_nothing_changed_unseen(prod: Stage) -> None:
    """Every template of the stage is as in the repository."""
    now = rendered(prod)
    known = {path.stem: path.read_text() for path in FOLDER.glob("*.json")}
    assert set(now) == set(known)
    for name, text in now.items():
        difference = difflib.unified_diff(
            known[name].splitlines(), text.splitlines(), "snapshot", "now", lineterm="", n=2
        )
        assert text == known[name], "\n".join([f"stack {name}:", *difference])


def write() -> None:
    """Write the snapshot."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in rendered(synthesise(STAGE, Path(folder))).items():
            (FOLDER / f"{name}.json").write_text(text)


if __name__ == "__main__":
    write()
