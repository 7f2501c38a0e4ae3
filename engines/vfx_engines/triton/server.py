"""What vfx asks a server, over either protocol, and when a failed request is tried again."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from random import uniform
from time import monotonic
from typing import Any, Literal, Protocol, TypeVar

from vfx_engines.engine import Array
from vfx_engines.errors import EngineError
from vfx_engines.spec import EngineSpec
from vfx_engines.triton.address import ServerAddress

T = TypeVar("T")

Question = Literal["ready", "server", "model", "config"]
"""Whether the server is ready (an empty answer if it is); its name and version; the model's versions and
tensors; the model's configuration. Answers are JSON of the KServe v2 protocol, the last one of Triton's
extension to it."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Pauses between tries, in seconds: each is twice the one before, up to the longest. Each is then shortened
at random, at most to half, so that many clients do not come back at the same moment."""


class TransientError(Exception):
    """The server is away, busy or not ready; the same request may succeed a little later."""


class Server(Protocol):
    """A connection to a server, for one model. Safe to use from several threads."""

    def ask(self, question: Question, version: str | None = None) -> dict[str, Any]:
        """The answer to a question.

        Args:
            question: see `Question`.
            version: version of the model; None leaves the choice to the server.

        Raises:
            TransientError: another try may succeed.
            EngineError: another try would fail in the same way.
        """

    def infer(self, spec: EngineSpec, version: str, rows: Array) -> Sequence[Array]:
        """Run the model on ``rows``, of which nothing is kept.

        Args:
            spec: spec of the model.
            version: version of the model.
            rows: ``[n, *input.shape[1:]]`` of the spec's dtype.

        Returns:
            The spec's outputs in its order, each ``[n, *shape]``.

        Raises:
            TransientError: another try may succeed.
            EngineError: another try would fail in the same way.
        """

    def cancel(self) -> None:
        """Make calls of `infer` in other threads fail, those under way and all later ones."""

    def close(self) -> None:
        """Close all connections. Called when nothing is under way."""


class Patience:
    """Tries a request again if it failed with a `TransientError`.

    Args:
        address: says how often to try.
    """

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._ended = threading.Event()

    def __call__(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` returns when it succeeds.

        Raises:
            EngineError: ``attempt`` raised it, the tries are used up, or `end` was called.
        """
        started = monotonic()
        for number in range(1, self._address.tries + 1):
            if self._ended.is_set():
                break
            try:
                return attempt()
            except TransientError as error:
                last = error
            if number < self._address.tries:
                self._ended.wait(_pause(number))
        if self._ended.is_set():
            raise EngineError(f"{self._address}: given up, since the engine was closed")
        tries = f"{self._address.tries} tries in {monotonic() - started:.0f} s"
        raise EngineError(
            f"{self._address}: no answer ({tries}; the last one: {last}): see whether the server runs and is "
            "reached there, and run again"
        )

    def end(self) -> None:
        """Allow no more tries, and end the current pause."""
        self._ended.set()


def _pause(tries: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (tries - 1)) * uniform(0.5, 1)
