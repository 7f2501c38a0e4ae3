"""`Engine` over a backend that is watched: the round of a slot, and what is checked on the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from tiny import FRAMES, SIZE, tiny_features, tiny_spec
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, InputError

BATCH = 3
SHAPE = (BATCH, FRAMES, SIZE, SIZE, 3)


class Watched:
    """Computes the tiny engine's features in `wait`, into arrays that it uses again."""

    name, precision = "a watched backend", "fp32"

    def __init__(self, slots: int = 2, shape: tuple[int, ...] = SHAPE, dtype: Any = np.uint8) -> None:
        self.buffers = [np.zeros(shape, dtype) for _ in range(slots)]
        self.outputs = [np.zeros((BATCH, 4), np.float32) for _ in range(slots)]
        self.fail: dict[str, BaseException] = {}
        self.calls: list[tuple[str, ...] | tuple[str, int] | tuple[str, int, int]] = []

    def start(self, slot: int, count: int) -> None:
        self.calls.append(("start", slot, count))
        if "start" in self.fail:
            raise self.fail["start"]

    def wait(self, slot: int) -> Sequence[NDArray[Any]]:
        self.calls.append(("wait", slot))
        if "wait" in self.fail:
            raise self.fail["wait"]
        if self.outputs[slot].shape == (BATCH, 4):
            self.outputs[slot][:] = tiny_features(self.buffers[slot])
        return [self.outputs[slot]]

    def close(self) -> None:
        self.calls.append(("close",))


@pytest.fixture
def backend() -> Watched:
    return Watched()


@pytest.fixture
def engine(backend: Watched) -> Engine:
    return Engine(tiny_spec(), backend)


def windows(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, *SHAPE[1:]), np.uint8)


def test_it_says_what_runs(engine: Engine) -> None:
    assert engine.name == "a watched backend"
    assert engine.precision == "fp32"
    assert (engine.slots, engine.batch) == (2, BATCH)
    assert engine.spec == tiny_spec()


def test_a_slot_goes_round(engine: Engine, backend: Watched) -> None:
    for turn in range(3):
        pixels = windows(2, seed=turn)
        engine.buffer(1)[:2] = pixels
        engine.submit(1, 2)
        outputs = engine.collect(1)
        assert list(outputs) == ["features"]
        np.testing.assert_array_equal(outputs["features"], tiny_features(pixels))
    assert backend.calls == [("start", 1, 2), ("wait", 1)] * 3


def test_the_buffer_is_the_backends_own(engine: Engine, backend: Watched) -> None:
    assert engine.buffer(0) is backend.buffers[0]
    assert engine.buffer(1) is backend.buffers[1]


def test_slots_are_apart(engine: Engine) -> None:
    pixels = windows(2)
    for slot in (0, 1):
        engine.buffer(slot)[:1] = pixels[slot : slot + 1]
        engine.submit(slot, 1)
    got = [engine.collect(slot)["features"] for slot in (1, 0)]
    np.testing.assert_array_equal(np.concatenate(got[::-1]), tiny_features(pixels))


def test_a_slot_in_flight_is_neither_written_nor_submitted_again(engine: Engine, backend: Watched) -> None:
    engine.submit(0, 1)
    with pytest.raises(InputError, match="slot 0: in flight"):
        engine.buffer(0)
    with pytest.raises(InputError, match="slot 0: in flight"):
        engine.submit(0, 1)
    assert backend.calls == [("start", 0, 1)]
    engine.buffer(1)
    engine.collect(0)
    engine.buffer(0)


def test_a_slot_is_collected_once(engine: Engine, backend: Watched) -> None:
    with pytest.raises(InputError, match="slot 0: collected without being submitted"):
        engine.collect(0)
    engine.submit(0, 1)
    engine.collect(0)
    with pytest.raises(InputError, match="slot 0: collected without being submitted"):
        engine.collect(0)
    assert backend.calls == [("start", 0, 1), ("wait", 0)]


@pytest.mark.parametrize("count", [-1, 0, BATCH + 1])
def test_the_count_is_between_one_and_the_batch(engine: Engine, backend: Watched, count: int) -> None:
    with pytest.raises(InputError, match=f"{count} rows submitted, expected 1 to {BATCH}"):
        engine.submit(0, count)
    assert backend.calls == []
    engine.submit(0, BATCH)


@pytest.mark.parametrize("slot", [-1, 2])
def test_slots_that_there_are_not(engine: Engine, slot: int) -> None:
    for call in (engine.buffer, lambda slot: engine.submit(slot, 1), engine.collect):
        with pytest.raises(InputError, match=f"slot {slot}: the engine has slots 0 to 1"):
            call(slot)


@pytest.mark.parametrize("error", [EngineError("no device"), KeyboardInterrupt()])
def test_a_start_that_fails_leaves_the_slot_free(
    engine: Engine, backend: Watched, error: BaseException
) -> None:
    backend.fail["start"] = error
    with pytest.raises(type(error)):
        engine.submit(0, 1)
    backend.fail.clear()
    pixels = windows(1)
    engine.buffer(0)[:1] = pixels
    engine.submit(0, 1)
    np.testing.assert_array_equal(engine.collect(0)["features"], tiny_features(pixels))


@pytest.mark.parametrize("error", [EngineError("no device"), KeyboardInterrupt()])
def test_a_wait_that_fails_leaves_the_slot_free(
    engine: Engine, backend: Watched, error: BaseException
) -> None:
    engine.submit(0, 1)
    backend.fail["wait"] = error
    with pytest.raises(type(error)):
        engine.collect(0)
    backend.fail.clear()
    pixels = windows(1)
    engine.buffer(0)[:1] = pixels
    engine.submit(0, 1)
    np.testing.assert_array_equal(engine.collect(0)["features"], tiny_features(pixels))


def test_outputs_belong_to_the_caller(engine: Engine, backend: Watched) -> None:
    pixels = windows(2)
    engine.buffer(0)[:2] = pixels
    engine.submit(0, 2)
    features = engine.collect(0)["features"]
    assert features.shape == (2, 4)
    assert features.flags.owndata
    assert features.flags.writeable
    backend.outputs[0][:] = np.nan
    np.testing.assert_array_equal(features, tiny_features(pixels))


def test_half_precision_outputs_become_float32(engine: Engine, backend: Watched) -> None:
    backend.outputs[0] = backend.outputs[0].astype(np.float16)
    engine.submit(0, 1)
    assert engine.collect(0)["features"].dtype == np.float32


@pytest.mark.parametrize("shape", [(BATCH, 5), (BATCH, 4, 1), (BATCH,), (1, 4)])
def test_an_output_of_another_shape_is_the_engines_fault(
    engine: Engine, backend: Watched, shape: tuple[int, ...]
) -> None:
    backend.outputs[0] = np.zeros(shape, np.float32)
    engine.submit(0, 2)
    with pytest.raises(EngineError, match=r"output features: the spec says \[4\] per row, the graph gave"):
        engine.collect(0)
    engine.buffer(0)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((BATCH, FRAMES, SIZE, SIZE + 1, 3), np.uint8),
        ((BATCH, FRAMES + 1, SIZE, SIZE, 3), np.uint8),
        ((BATCH, FRAMES, SIZE, SIZE), np.uint8),
        (SHAPE, np.float32),
    ],
)
def test_a_backend_of_another_input_is_refused(shape: tuple[int, ...], dtype: Any) -> None:
    with pytest.raises(EngineError, match=r"input frames: the spec says uint8 \['batch', 4, 16, 16, 3\]"):
        Engine(tiny_spec(), Watched(shape=shape, dtype=dtype))


@pytest.mark.parametrize("count", [1, BATCH - 1, BATCH, BATCH + 1, 3 * BATCH])
def test_run_takes_any_number_of_rows(engine: Engine, backend: Watched, count: int) -> None:
    pixels = windows(count)
    np.testing.assert_array_equal(engine.run(pixels)["features"], tiny_features(pixels))
    assert sum(call[2] for call in backend.calls if call[0] == "start") == count


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((0, *SHAPE[1:]), np.uint8),
        np.zeros((1, *SHAPE[1:]), np.float32),
        np.zeros((1, FRAMES, SIZE, SIZE + 1, 3), np.uint8),
        np.zeros(SHAPE[1:], np.uint8),
        np.zeros((), np.uint8),
    ],
    ids=["none", "float", "wide", "no batch", "scalar"],
)
def test_run_refuses_other_rows(engine: Engine, backend: Watched, rows: NDArray[Any]) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[n, 4, 16, 16, 3\], got"):
        engine.run(rows)
    assert backend.calls == []


def test_closing_waits_for_what_is_in_flight_and_happens_once(engine: Engine, backend: Watched) -> None:
    with engine:
        engine.submit(0, 1)
        engine.submit(1, 1)
        backend.calls.clear()
    engine.close()
    assert sorted(backend.calls[:-1]) == [("wait", 0), ("wait", 1)]
    assert backend.calls[-1] == ("close",)


def test_closing_drops_results_and_their_errors(engine: Engine, backend: Watched) -> None:
    engine.submit(0, 1)
    engine.submit(1, 1)
    backend.fail["wait"] = EngineError("no device")
    backend.calls.clear()
    engine.close()
    assert sorted(backend.calls[:-1]) == [("wait", 0), ("wait", 1)]
    assert backend.calls[-1] == ("close",)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ZeroDivisionError()])
def test_whatever_a_wait_raises_the_backend_is_closed(
    engine: Engine, backend: Watched, error: BaseException
) -> None:
    engine.submit(0, 1)
    engine.submit(1, 1)
    backend.fail["wait"] = error
    backend.calls.clear()
    with pytest.raises(type(error)):
        engine.close()
    assert sorted(backend.calls[:-1]) == [("wait", 0), ("wait", 1)]
    assert backend.calls[-1] == ("close",)


def test_a_closed_engine_says_so(engine: Engine, backend: Watched) -> None:
    engine.close()
    assert (engine.slots, engine.batch) == (2, BATCH)
    for call in (engine.buffer, lambda slot: engine.submit(slot, 1), engine.collect):
        with pytest.raises(InputError, match="the engine is closed"):
            call(0)
    with pytest.raises(InputError, match="the engine is closed"):
        engine.run(windows(1))
