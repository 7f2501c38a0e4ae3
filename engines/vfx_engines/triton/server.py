"""What vfx asks a server, whichever way it is reached; which failures are worth another try."""

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
"""Whether the server is ready (an answer without content if so); who it is; the model's versions and tensors;
the model's configuration. Answers are the KServe v2 protocol's JSON, and Triton's extension for the last."""

FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
"""Seconds between two tries: doubled from the first one on, and each shortened by chance, to a half at most:
many clients must not come back at once."""


class TransientError(Exception):
    """The server is away, busy or not ready: the same request may be answered a little later."""


class Server(Protocol):
    """A connection to a server, for one model. Safe to use from several threads."""

    def ask(self, question: Question, version: str | None = None) -> dict[str, Any]:
        """The answer to a question.

        Raises:
            TransientError: worth another try.
            EngineError: not worth one.
        """

    def infer(self, spec: EngineSpec, version: str, rows: Array) -> Sequence[Array]:
        """The spec's outputs, in its order, for ``rows``; nothing is kept of them.

        Raises:
            TransientError: worth another try.
            EngineError: not worth one.
        """

    def cancel(self) -> None:
        """End what other threads ask and infer, with an error, now and from now on."""

    def close(self) -> None:
        """Give back connections. Nothing is under way."""


class Patience:
    """Tries a request again where that may help.

    Args:
        address: says how often.
    """

    def __init__(self, address: ServerAddress) -> None:
        self._address = address
        self._ended = threading.Event()

    def __call__(self, attempt: Callable[[], T]) -> T:
        """What ``attempt`` gives, in the end.

        Raises:
            EngineError: it raises that, the tries are used up, or `end` was called.
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
        """No more tries, from now on."""
        self._ended.set()


def _pause(tries: int) -> float:
    return min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** (tries - 1)) * uniform(0.5, 1)
