"""Divide a list among several runs that know nothing of each other, such as those of a Slurm array."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Self

from vfx_engines.errors import UsageError, shown
from vfx_runtime.job import Job


@dataclass(frozen=True, slots=True)
class Share:
    """Share ``number`` of ``count``, counted from 0.

    A hash of a video's name alone says which share it belongs to, not its place in the list, nor what else is
    in the list. So if the list is sorted differently or grows between the starts of two runs, no video is
    left out and none is done twice. Shares are equal on average: of 1,000 videos in 8 shares, each has 125,
    give or take 10.
    """

    number: int
    count: int

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Read a share from text such as ``3/8``.

        Raises:
            UsageError: the text has another form, or the number is not below the count.
        """
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", text)
        share = cls(int(found[1]), int(found[2])) if found else None
        if share is None or share.number >= share.count:
            raise UsageError(
                f"--shard {shown(text)}: expected I/N with I from 0 to N - 1, such as 0/8 to 7/8 for 8 runs"
            )
        return share

    def of(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that belong to this share, in their original order."""
        return [job for job in jobs if _number(job.name) % self.count == self.number]


def _number(name: str) -> int:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogateescape"), digest_size=8).digest()
    return int.from_bytes(digest, "big")
