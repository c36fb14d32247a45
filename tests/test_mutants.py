"""The list of mutants fits the code: each text is there once, what it becomes compiles, and none is lost unnoticed."""

from __future__ import annotations

import ast
from collections import Counter

import pytest
from faults import campaign, mutants
from faults.mutations import MUTANTS, Mutant

COUNT = 144


def test_the_number_of_mutants() -> None:
    """Pinned: who takes one off the list says why, in `mutations.EQUIVALENT`."""
    assert len(MUTANTS) == COUNT


def test_no_mutant_is_there_twice() -> None:
    assert not [name for name, times in Counter(map(str, MUTANTS)).items() if times > 1]
    assert len({mutants.mutated(mutant) for mutant in MUTANTS}) == len(MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_another_program(mutant: Mutant) -> None:
    was = ast.dump(ast.parse((mutants.PACKAGE / mutant.file).read_text()))

    assert ast.dump(ast.parse(mutants.mutated(mutant))) != was
    compile(mutants.mutated(mutant), mutant.file, "exec")


@pytest.mark.parametrize("mutant", MUTANTS, ids=str)
def test_a_mutant_is_looked_for(mutant: Mutant) -> None:
    assert mutant.looks
    assert {look.part for look in mutant.looks} <= campaign.PARTS.keys()


def test_a_text_that_is_gone_is_an_error() -> None:
    with pytest.raises(ValueError, match="is there 0 times"):
        mutants.mutated(MUTANTS[0]._replace(old="no such text"))
