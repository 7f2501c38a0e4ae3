"""What a server says of a model, asked of one that is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from tiny import tiny_spec
from vfx_engines.engine import Array
from vfx_engines.errors import EngineError
from vfx_engines.spec import EngineSpec, Input, Text, Transform
from vfx_engines.triton.address import ServerAddress
from vfx_engines.triton.served import read_served
from vfx_engines.triton.server import Patience, Question

ADDRESS = ServerAddress("http", "nowhere:8000", "tiny", tries=1)


class Told:
    """A server with one model, whose configuration is given."""

    def __init__(self, config: dict[str, Any]) -> None:
        self._answers: dict[str, dict[str, Any]] = {
            "ready": {},
            "server": {"version": "2.51.0"},
            "model": {"versions": ["1", "3"]},
            "config": config,
        }

    def ask(self, question: Question, version: str | None = None) -> dict[str, Any]:
        return self._answers[question]

    def infer(self, spec: EngineSpec, version: str, rows: Array) -> Sequence[Array]:
        raise AssertionError("nothing is computed")

    def cancel(self) -> None: ...

    def close(self) -> None: ...


def config_of(spec: EngineSpec, takes: str, dims: list[int]) -> dict[str, Any]:
    return {
        "max_batch_size": 8,
        "input": [{"name": spec.input.name, "data_type": takes, "dims": dims}],
        "output": [{"name": item.name, "data_type": "TYPE_FP32", "dims": [4]} for item in spec.outputs],
        "parameters": {"vfx_3": {"string_value": spec.to_json()}},
    }


def test_the_newest_version_with_its_own_spec() -> None:
    spec = tiny_spec()
    server = Told(config_of(spec, "TYPE_UINT8", [4, 16, 16, 3]))
    found = read_served(ADDRESS, server, Patience(ADDRESS))
    assert (found.spec, found.version, found.most, found.server) == (spec, "3", 8, "Triton 2.51.0")


def test_a_model_of_texts_is_read_like_any_other() -> None:
    spec = replace(
        tiny_spec(),
        input=Input("tokens", "text", "int32", ("batch", 77), (0,)),
        transform=Transform(),
        text=Text("clip", 100.0, "a b"),
    )
    found = read_served(ADDRESS, Told(config_of(spec, "TYPE_INT32", [77])), Patience(ADDRESS))
    assert found.spec == spec


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"max_batch_size": 0}, "max_batch_size is 0, expected 1 or more"),
        ({"parameters": {}}, "version 3 has no vfx spec in its parameters"),
        ({"input": []}, "the server's model takes  and gives features TYPE_FP32"),
        ({"output": [{"name": 3}]}, "its model configuration cannot be read"),
    ],
)
def test_a_model_that_is_not_of_its_spec_is_refused_in_one_line(change: dict[str, Any], says: str) -> None:
    config = config_of(tiny_spec(), "TYPE_UINT8", [4, 16, 16, 3]) | change
    with pytest.raises(EngineError) as caught:
        read_served(ADDRESS, Told(config), Patience(ADDRESS))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
