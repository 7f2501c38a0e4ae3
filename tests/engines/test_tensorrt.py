"""The TensorRT backend against a fake that has the real names and signatures, on a simulated device.

What this cannot show, a machine with TensorRT does: scripts/gpu.
"""

from __future__ import annotations

import os
import random
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from fake_tensorrt import KIT, VERSIONS, FakeTensorRt, tiny_plan
from simulated_cuda import SimulatedDriver
from tiny import FRAMES, SIZE, tiny_features, tiny_spec
from tolerances import TINY
from vfx_engines import cuda_python, inspection
from vfx_engines.backends.tensorrt import SLOTS, TensorRtBackend
from vfx_engines.cuda_python import CudaPython
from vfx_engines.engine import Engine
from vfx_engines.errors import EngineError, UsageError
from vfx_engines.opening import open_engine
from vfx_engines.plan_file import write_plan
from vfx_engines.spec import EngineSpec, Plan
from vfx_engines.tensorrt_api import TensorRt, is_installed

if not KIT.is_dir():
    if "parity" in os.environ.get("VFX_REQUIRE", ""):
        pytest.fail(f"the kit is not at {KIT}")
    pytest.skip(f"the kit is not at {KIT}", allow_module_level=True)

BUILDERS = {"10.16": "10.16.1.11", "11.4": "11.4.0.106", "11.4-lean": "11.4.0.106"}


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedDriver]:
    simulated = SimulatedDriver(seed=1)
    monkeypatch.setattr(cuda_python, "driver", simulated)
    yield simulated
    assert simulated.leaks() == []


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def module(version: str, driver: SimulatedDriver, monkeypatch: pytest.MonkeyPatch) -> FakeTensorRt:
    fake = FakeTensorRt(version, driver)
    fake.__dict__["__spec__"] = object()
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    return fake


def spec_of(version: str, *, compatible: bool) -> EngineSpec:
    plan = Plan(
        BUILDERS[version], "Simulated GPU", (9, 0), "00" * 32, (1, 4, 4), version_compatible=compatible
    )
    return replace(tiny_spec(), precision="fp16", plan=plan)


def opened(
    version: str,
    folder: Path,
    *,
    compatible: bool | None = None,
    batch: int | None = None,
    spec: EngineSpec | None = None,
    **plan: object,
) -> Engine:
    compatible = "lean" in version if compatible is None else compatible
    path = folder / "tiny.plan"
    path.write_bytes(tiny_plan(version=BUILDERS[version], compatible=compatible, **plan))  # type: ignore[arg-type]
    spec = spec or spec_of(version, compatible=compatible)
    library = TensorRt(lean="lean" in version)
    return Engine(spec, TensorRtBackend(path, spec, library, CudaPython(0), batch))


def windows(seed: int, count: int) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, FRAMES, SIZE, SIZE, 3), np.uint8)


def test_a_plan_runs_in_every_slot(module: FakeTensorRt, version: str, tmp_path: Path) -> None:
    order = random.Random(0)
    with opened(version, tmp_path) as engine:
        assert (
            engine.name
            == f"TensorRT {'lean ' if 'lean' in version else ''}{BUILDERS[version]}, Simulated GPU, fp16"
        )
        assert (engine.slots, engine.batch) == (SLOTS, 4)
        flying: dict[int, NDArray[np.uint8]] = {}
        for turn in range(40):
            slot = turn % SLOTS
            if slot in flying:
                rows = engine.collect(slot)["features"]
                np.testing.assert_allclose(rows, tiny_features(flying[slot]), rtol=TINY)
            flying[slot] = windows(turn, order.choice([1, 3, 4, 4, 4]))
            engine.buffer(slot)[: len(flying[slot])] = flying[slot]
            engine.submit(slot, len(flying[slot]))
        for slot, given in flying.items():
            np.testing.assert_allclose(engine.collect(slot)["features"], tiny_features(given), rtol=TINY)
    contexts = {context for context, _, _ in module.enqueued}
    streams = {(context, stream) for context, stream, _ in module.enqueued}
    assert len(contexts) == len(streams) == SLOTS
    assert module.driver.launched_graphs > 0


def test_a_static_plan_is_filled_up(module: FakeTensorRt, version: str, tmp_path: Path) -> None:
    with opened(version, tmp_path, profiles=((4, 4, 4),)) as engine:
        given = windows(0, 7)
        np.testing.assert_allclose(engine.run(given)["features"], tiny_features(given), rtol=TINY)
    assert {count for _, _, count in module.enqueued} == {4}


def test_the_profile_tuned_nearest_is_taken(module: FakeTensorRt, version: str, tmp_path: Path) -> None:
    with opened(version, tmp_path, profiles=((1, 1, 1), (1, 8, 16)), batch=6) as engine:
        given = windows(0, 6)
        np.testing.assert_allclose(engine.run(given)["features"], tiny_features(given), rtol=TINY)
        assert engine.batch == 6


def test_a_version_compatible_plan_runs_in_the_full_runtime(
    driver: SimulatedDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeTensorRt("11.4", driver)
    fake.__dict__["__spec__"] = object()
    monkeypatch.setitem(sys.modules, "tensorrt", fake)
    with opened("11.4", tmp_path, compatible=True) as engine:
        given = windows(0, 2)
        np.testing.assert_allclose(engine.run(given)["features"], tiny_features(given), rtol=TINY)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"batch": 9}, "batch 9: this plan was built for 1 to 4; build one with --batch"),
        ({"row": (FRAMES, 8, 8, 3)}, "they are not of the same export"),
        ({"spec": replace(tiny_spec(labels=True), precision="fp16")}, "they are not of the same export"),
    ],
)
def test_what_does_not_fit_is_one_line(
    module: FakeTensorRt, version: str, tmp_path: Path, change: dict[str, object], said: str
) -> None:
    if "lean" in version and "spec" in change:
        change = {"spec": replace(change["spec"], plan=spec_of(version, compatible=True).plan)}  # type: ignore[type-var]
    with pytest.raises(EngineError, match=said) as caught:
        opened(version, tmp_path, **change)  # type: ignore[arg-type]
    assert str(caught.value).isprintable()
    assert "tiny.plan" in str(caught.value)


def test_a_plan_of_another_version_names_both(module: FakeTensorRt, version: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.plan"
    path.write_bytes(tiny_plan(version="10.12.0.36"))
    library = TensorRt(lean="lean" in version)
    with pytest.raises(EngineError) as caught:
        library.load(path, with_host_code=False)
    assert BUILDERS[version] in str(caught.value)
    assert "lean" in version or "10.12.0.36" in str(caught.value)
    path.write_bytes(b"no plan at all")
    with pytest.raises(EngineError, match=r"tiny\.plan: TensorRT .* refuses this plan: .*[Mm]agic"):
        library.load(path, with_host_code=False)


def test_layers(module: FakeTensorRt, version: str, tmp_path: Path) -> None:
    path = tmp_path / "tiny.plan"
    lean = "lean" in version
    path.write_bytes(tiny_plan(version=BUILDERS[version], compatible=lean))
    kinds = TensorRt(lean=lean).load(path, with_host_code=False).layer_kinds()

    assert kinds == ({} if lean else {"cast": "Cast", "means": "Reduce"})


@pytest.mark.parametrize("version", ["10.16", "11.4"])
def test_a_plan_is_inspected_layer_by_layer(
    module: FakeTensorRt, version: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inspection, "open_cuda", CudaPython)
    path = tmp_path / "tiny.plan"
    write_plan(path, tiny_plan(version=BUILDERS[version]), spec_of(version, compatible=False))
    layers, batch = inspection.inspect_plan(path)

    assert batch == 4
    assert layers == [inspection.Layer("cast", "Cast", 0.25), inspection.Layer("means", "Reduce", 0.75)]
    lines = inspection.layer_table(layers, batch).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["0.7500", "75.0%", "Reduce", "means"],
        ["0.2500", "25.0%", "Cast", "cast"],
        ["1.0000", "100.0%", "2", "layers,", "batch", "4"],
    ]


@pytest.mark.parametrize("version", ["11.4"])
@pytest.mark.parametrize(
    ("tensorrt", "plan", "said"),
    [
        ("10.12.0.36", b"", "built by TensorRT 10.12.0.36"),
        (BUILDERS["11.4"], b"no plan", "refuses this plan"),
    ],
)
def test_a_device_on_which_a_plan_does_not_open_is_released(
    module: FakeTensorRt,
    driver: SimulatedDriver,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    tensorrt: str,
    plan: bytes,
    said: str,
) -> None:
    monkeypatch.setattr("vfx_engines.devices.missing_driver", lambda: None)
    path, spec = tmp_path / "tiny.plan", spec_of("11.4", compatible=False)
    assert spec.plan is not None
    write_plan(path, plan, replace(spec, plan=replace(spec.plan, tensorrt=tensorrt)))
    for open_it in (open_engine, inspection.inspect_plan):
        with pytest.raises(EngineError, match=said):
            open_it(path)
        assert driver.contexts == 0
    write_plan(path, tiny_plan(version=BUILDERS["11.4"]), spec)
    inspection.inspect_plan(path)
    assert driver.contexts == 0


def test_only_plans_are_inspected(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"expected a \.plan"):
        inspection.inspect_plan(tmp_path / "tiny.onnx")


def test_the_fake_refuses_what_a_version_lacks(driver: SimulatedDriver) -> None:
    ten, eleven, lean = (FakeTensorRt(version, driver) for version in VERSIONS)

    assert ten.BuilderFlag.FP16 is not None
    with pytest.raises(AttributeError):
        _ = eleven.BuilderFlag.FP16
    with pytest.raises(AttributeError):
        _ = lean.Builder
    context = eleven.IExecutionContext()
    with pytest.raises(TypeError):
        context.set_input_shape("frames")
    with pytest.raises(TypeError):
        context.set_input_shape("frames", "shape")
    with pytest.raises(AttributeError):
        context.execute_async_v2(0)


def test_without_tensorrt_the_way_to_get_it_is_named() -> None:
    for lean, said in ((False, r"pypi\.nvidia\.com"), (True, "pip install tensorrt-lean-cu13-bindings")):
        if is_installed(lean=lean):
            pytest.skip("this machine has TensorRT")
        with pytest.raises(UsageError, match=f"is not installed: .*{said}") as caught:
            TensorRt(lean=lean)
        assert str(caught.value).isprintable()


def test_the_real_lean_runtime_loads_without_a_driver() -> None:
    """Its wheels come from PyPI: pip install tensorrt-lean-cu13-bindings tensorrt-lean-cu13-libs."""
    if not is_installed(lean=True):
        pytest.skip("TensorRT's lean runtime is not installed")
    library = TensorRt(lean=True)
    library.logger.log(library.module.ILogger.ERROR, "something went wrong")

    assert library.name.startswith("TensorRT lean 1")
    assert library.last_error == "something went wrong"
