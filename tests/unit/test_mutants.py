"""The mutants of the chaos are made for the layer as it is."""

import shutil
from pathlib import Path

import pytest

from tests.support.mutants import LAYER, MUTANTS, mutate


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant[0]}: {mutant[2][:40]}")
def test_a_mutant_still_fits_the_layer(mutant: tuple[str, str, str], tmp_path: Path) -> None:
    """It changes one place, and what it makes is Python; the chaos takes minutes to say so."""
    name = mutant[0]
    (tmp_path / LAYER).mkdir(parents=True)
    shutil.copy(LAYER / name, tmp_path / LAYER)
    mutate(tmp_path, *mutant)
    changed = (tmp_path / LAYER / name).read_text()
    compile(changed, name, "exec")
    assert changed != (LAYER / name).read_text()
