"""CLIP's tokenizer: its rules, on a small vocabulary made for these tests."""

from __future__ import annotations

import numpy as np
import pytest

from vfx_engines.errors import SpecError, UsageError
from vfx_engines.spec import Text
from vfx_runtime.tokenizer import Tokenizer

MERGES = ["d o", "do g</w>", "' s</w>", "c a", "ca t</w>", "1 2</w>", "a a", "aa a</w>", "Ã ©</w>", "! !</w>"]
START, END = 512 + len(MERGES), 512 + len(MERGES) + 1


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(Text("clip", 100.0, "\n".join(MERGES)), 77)


def merged(line: str) -> int:
    return 512 + MERGES.index(line)


def byte(character: str, *, ends: bool = False) -> int:
    """Id of a printable ASCII character: printable bytes come first in the vocabulary, from ``!`` on."""
    return ord(character) - ord("!") + 256 * ends


DOG, CAT = merged("do g</w>"), merged("ca t</w>")


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("dog", [DOG]),
        ("  Dog \t\n cat ", [DOG, CAT]),
        ("dog&amp;amp;cat", [DOG, byte("&", ends=True), CAT]),  # unescaped twice
        ("dog's", [DOG, merged("' s</w>")]),
        ("dog’s", [DOG, merged("' s</w>")]),
        ("ｄｏｇ", [DOG]),
        ("12", [byte("1", ends=True), byte("2", ends=True)]),  # each digit is a word, so "1 2" does not merge
        ("dog!!cat", [DOG, merged("! !</w>"), CAT]),
        ("dog_cat", [DOG, byte("_", ends=True), CAT]),
        ("aaa", [merged("aa a</w>")]),
        ("aaaa", [merged("a a"), byte("a"), byte("a", ends=True)]),
        ("e\u0301", [merged("Ã ©</w>")]),  # composed to one character, then its two UTF-8 bytes
        ("é", [merged("Ã ©</w>")]),
        ("<|endoftext|>dog", [END, DOG]),
        ("", []),
    ],
)
def test_ids_of_a_text(tokenizer: Tokenizer, text: str, ids: list[int]) -> None:
    assert tokenizer.encode(text) == ids


def test_bytes_that_do_not_print_come_after_those_that_do(tokenizer: Tokenizer) -> None:
    # 188 bytes are printable; of the others, U+0000 is the first and U+007F the 34th.
    assert tokenizer.encode("\x00") == [188 + 256]
    assert tokenizer.encode("\x7f") == [188 + 33 + 256]


def test_a_row_is_start_words_end_and_zeros(tokenizer: Tokenizer) -> None:
    rows = tokenizer(["dog", "dog cat"])
    assert rows.dtype == np.int32
    assert rows.shape == (2, 77)
    assert [row[row != 0].tolist() for row in rows] == [[START, DOG, END], [START, DOG, CAT, END]]
    assert rows.argmax(1).tolist() == [2, 3]


def test_75_tokens_fit_and_76_do_not(tokenizer: Tokenizer) -> None:
    assert (tokenizer(["dog " * 75]) != 0).all()
    with pytest.raises(UsageError, match=r"text 'dog dog .*': 76 tokens, at most 75 fit: shorten it"):
        tokenizer(["cat", "dog " * 76])


@pytest.mark.parametrize("line", ["", "dog", "d o g", "d ", " d"])
def test_a_merge_is_two_symbols(line: str) -> None:
    with pytest.raises(SpecError, match=r"text: merge 2 is .*, expected two symbols"):
        Tokenizer(Text("clip", 100.0, f"a b\n{line}\nc d"), 77)
