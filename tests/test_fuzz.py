"""Fuzz every reader of outside data for a second or two; ``scripts/fuzz`` takes longer."""

from __future__ import annotations

import pytest

from fuzzing import READERS, fuzz

EXAMPLES = 150


@pytest.mark.parametrize("name", READERS)
def test_an_answer_or_one_line(name: str) -> None:
    fuzz(name, EXAMPLES)
