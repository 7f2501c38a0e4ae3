"""From texts to token ids: CLIP's byte-level BPE, with the merges in a text encoder's spec.

Sources: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision", 2021; for
byte-level BPE, Radford et al., "Language Models are Unsupervised Multitask Learners", 2019. CLIP first cleans
texts with ftfy, which repairs wrongly decoded text. Here only what ftfy does to correct text is done:
straight quotes for curly ones, plain letters for ligatures and full width, and composed accents (NFC).
"""

from __future__ import annotations

import html
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from vfx_engines.errors import SpecError, UsageError, shown
from vfx_engines.spec import Text

_END_OF_WORD = "</w>"
_START, _END = "<|startoftext|>", "<|endoftext|>"
_WHOLE = (_START, _END, "'s", "'t", "'re", "'ve", "'m", "'ll", "'d")
"""Each of these is one word wherever it begins, even a marker that is spelled out in a text."""
_LIGATURES = (0x132, 0x133, 0x149, *range(0x1C4, 0x1CD), *range(0x1F1, 0x1F4), *range(0xFB00, 0xFB07))
_FULL_WIDTH = (0x3000, *range(0xFF01, 0xFFF0))
_PLAIN = {code: unicodedata.normalize("NFKC", chr(code)) for code in (*_LIGATURES, *_FULL_WIDTH)}
_PLAIN |= str.maketrans(dict.fromkeys("‘’‚‛", "'") | dict.fromkeys("“”„‟", '"'))


class Tokenizer:
    """Turns texts into rows of token ids.

    Ids are numbered in this order: single bytes, bytes that end a word, merges, the marker that starts a
    text, and the marker that ends it, which has the largest id.

    Args:
        text: the text part of the engine's spec.
        tokens: number of tokens in a row, including both markers.

    Raises:
        SpecError: a merge is not two symbols.
    """

    def __init__(self, text: Text, tokens: int) -> None:
        self.tokens = tokens
        self._bytes = _byte_symbols()
        symbols = [*self._bytes.values()]
        symbols += [symbol + _END_OF_WORD for symbol in symbols]
        self._ranks: dict[tuple[str, str], int] = {}
        for rank, line in enumerate(text.merges.split("\n")):
            first, _, second = line.partition(" ")
            if not first or not second or " " in second:
                raise SpecError(f"text: merge {rank + 1} is {line[:40]!r}, expected two symbols")
            self._ranks[first, second] = rank
            symbols.append(first + second)
        symbols += [_START, _END]
        self._ids = {symbol: number for number, symbol in enumerate(symbols)}
        self._known: dict[str, list[int]] = {}

    def __call__(self, texts: Sequence[str]) -> NDArray[np.int32]:
        """Token ids, int32 ``[texts, tokens]``: the start marker, words, the end marker, then zeros.

        Raises:
            UsageError: a text has more tokens than fit.
        """
        rows = np.zeros((len(texts), self.tokens), np.int32)
        for row, text in zip(rows, texts, strict=True):
            ids = self.encode(text)
            if len(ids) > self.tokens - 2:
                raise UsageError(
                    f"text {shown(text[:60])}: {len(ids)} tokens, at most {self.tokens - 2} fit: shorten it"
                )
            row[: len(ids) + 2] = [self._ids[_START], *ids, self._ids[_END]]
        return rows

    def encode(self, text: str) -> list[int]:
        """The ids of a text, without markers."""
        return [number for word in _words(_clean(text)) for number in self._word(word)]

    def _word(self, word: str) -> list[int]:
        known = self._known.get(word)
        if known is None:
            whole = [word] if word in (_START, _END) else self._merged(word)
            known = self._known[word] = [self._ids[symbol] for symbol in whole]
        return known

    def _merged(self, word: str) -> list[str]:
        """The symbols of a word, made by merging the pairs of lowest rank again and again."""
        parts = [self._bytes[byte] for byte in word.encode()]
        parts[-1] += _END_OF_WORD
        never = len(self._ranks)
        while len(parts) > 1:
            pair = min(pairwise(parts), key=lambda pair: self._ranks.get(pair, never))
            if pair not in self._ranks:
                break
            merged: list[str] = []
            for part in parts:
                if merged and (merged[-1], part) == pair:
                    merged[-1] += part
                    # A merged symbol must not be part of another merge of this rank.
                    merged.append("")
                else:
                    merged.append(part)
            parts = [part for part in merged if part]
        return parts


@cache
def _byte_symbols() -> dict[int, str]:
    """A printable character for each byte, in the order of ids; printable Latin-1 stands for itself."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {byte: chr(byte) for byte in printable} | {
        byte: chr(256 + number) for number, byte in enumerate(others)
    }


def _clean(text: str) -> str:
    text = unicodedata.normalize("NFC", text.translate(_PLAIN))
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def _words(text: str) -> Iterator[str]:
    """Split into runs of letters, single digits, runs of other characters, and the words in `_WHOLE`."""
    at = 0
    while at < len(text):
        kind = _kind(text[at])
        end = at + 1
        if whole := next((word for word in _WHOLE if text.startswith(word, at)), ""):
            end = at + len(whole)
        elif kind in ("letter", "other"):
            while end < len(text) and _kind(text[end]) == kind:
                end += 1
        if kind != "space":
            yield text[at:end]
        at = end


def _kind(character: str) -> str:
    if character.isspace():
        return "space"
    return {"L": "letter", "N": "digit"}.get(unicodedata.category(character)[0], "other")
