"""The mutants of the chaos are made for the layer as it is."""

import pytest

from tests.support.mutants import LAYER, MUTANTS, Mutant, mutated


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: f"{mutant[0]}: {mutant[2][:40]}")
def test_a_mutant_still_fits_the_layer(mutant: Mutant) -> None:
    """It changes one place, and what it makes is Python; the chaos takes minutes to say so."""
    text = (LAYER / mutant[0]).read_text()
    changed = mutated(mutant, text)
    compile(changed, mutant[0], "exec")
    assert changed != text
