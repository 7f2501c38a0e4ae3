"""Building plans through Polygraphy, on the fake of each TensorRT that has a builder.

Polygraphy looks TensorRT up once per process, so each version builds in one of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fake_tensorrt import KIT
from tiny import tiny_engine, tiny_spec
from tiny_flow import tiny_flow_engine
from vfx_engines.build_settings import BuildSettings
from vfx_engines.errors import UsageError
from vfx_engines.plan_builder import _noise, _relative, build_plan
from vfx_engines.spec import Input, Text
from vfx_engines.tensorrt_api import is_installed

pytestmark = pytest.mark.skipif(not KIT.is_dir(), reason=f"the kit is not at {KIT}")

BUILD = """
import json, sys
from pathlib import Path

sys.path[:0] = json.loads(sys.argv[1])
import numpy as np

from fake_tensorrt import FakeTensorRt
from simulated_cuda import SimulatedDriver
from tiny import tiny_features
from vfx_engines import VfxError, cuda_python, devices, open_engine, plan_builder
from vfx_engines.plan_builder import BuildSettings, build_plan

version, folder, what = sys.argv[2], Path(sys.argv[3]), json.loads(sys.argv[4])
driver = SimulatedDriver()
cuda_python.driver = driver
devices.missing_driver = lambda: None
fake = FakeTensorRt(version, driver)
fake.__dict__["__spec__"] = object()
fake.__dict__["refuses"] = what.pop("refuses", False)
fake.__dict__["init_libnvinfer_plugins"] = lambda logger, namespace: True
sys.modules["tensorrt"] = fake
if what.pop("wrong", False):
    plan_builder._noise = lambda spec, shape: np.full(shape, 255, np.uint8) * (np.arange(shape[0]) == 0)[
        :, None, None, None, None
    ].astype(np.uint8)
    real = plan_builder._relative
    plan_builder._relative = lambda found, expected: real(found * 1.1, expected)
said = []
settings = BuildSettings(**{**what, "batches": tuple(tuple(b) for b in what.pop("batches", [[1, 4, 4]]))})
try:
    spec = build_plan(
        folder / "tiny.onnx",
        folder / "out" / "tiny.plan",
        settings,
        cache=folder / "cache",
        progress=lambda *step: said.append(step) or True,
    )
except VfxError as error:
    print(json.dumps({"error": str(error)}))
    sys.exit()
network, config = fake.built[-1]
given = np.random.default_rng(0).integers(0, 256, (5, *spec.input.shape[1:]), np.uint8)
with open_engine(folder / "out" / "tiny.plan") as engine:
    right = bool(np.allclose(engine.run(given)["features"], tiny_features(given), rtol=1e-5))
    name = engine.name
print(json.dumps({
    "right": right,
    "name": name,
    "said": said,
    "flags": sorted(flag.name for flag in config._flags),
    "profiles": [profile._shapes["frames"] for profile in config._profiles],
    "workspace": config.get_memory_pool_limit(fake.MemoryPoolType.WORKSPACE),
    "level": config.builder_optimization_level,
    "hardware": getattr(vars(config).get("hardware_compatibility_level"), "name", None),
    "cache": config._cache._data.decode(),
    "leaks": driver.leaks(),
}))
"""


def built(version: str, folder: Path, **what: object) -> dict[str, object]:
    here = Path(__file__).resolve().parent.parent
    rooms = [str(here.parent / room) for room in ("engines", "export", "runtime")]
    tiny_engine(folder / "tiny.onnx")
    run = subprocess.run(
        [
            sys.executable,
            "-c",
            BUILD,
            json.dumps([str(here), *rooms]),
            version,
            str(folder),
            json.dumps(what),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    found: dict[str, object] = json.loads(run.stdout.splitlines()[-1])
    return found


@pytest.fixture(params=["10.16", "11.4"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_a_plan_is_built_checked_and_run(tmp_path: Path, version: str) -> None:
    found = built(version, tmp_path)

    assert found["right"]
    assert "TensorRT" in str(found["name"])
    assert found["said"] == [["Building", 1, 2], ["Building", 2, 2], ["Building", 2, 2]]
    assert found["flags"] == []
    assert found["profiles"] == [[[batch, 4, 16, 16, 3] for batch in (1, 4, 4)]]
    assert found["leaks"] == []
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["tiny.plan", "tiny.plan.json"]
    spec = json.loads((tmp_path / "out" / "tiny.plan.json").read_text())
    assert spec["plan"]["tensorrt"].startswith(version)
    assert (spec["plan"]["device"], spec["plan"]["compute_capability"]) == ("Simulated GPU", [9, 0])
    assert spec["proof"]["error"] < 1e-5
    assert "the ONNX file, OpenVINO" in spec["proof"]["reference"]


def test_every_setting_reaches_the_builder(tmp_path: Path, version: str) -> None:
    found = built(
        version,
        tmp_path,
        batches=[[1, 1, 1], [2, 6, 8]],
        level=5,
        workspace=1 << 30,
        version_compatible=True,
        hardware="ampere_plus",
    )

    assert found["right"]
    assert found["flags"] == ["VERSION_COMPATIBLE"]
    assert [shape[0] for shape in found["profiles"][1]] == [2, 6, 8]  # type: ignore[index]
    assert (found["workspace"], found["level"], found["hardware"]) == (1 << 30, 5, "AMPERE_PLUS")


def test_timings_are_kept_for_the_next_build(tmp_path: Path, version: str) -> None:
    assert built(version, tmp_path)["cache"] == "timings"
    (file,) = (tmp_path / "cache").glob("*.timings")
    assert file.name.startswith(f"Simulated-GPU-{version}")
    assert built(version, tmp_path)["cache"] == "timingstimings"


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"refuses": True}, "cannot build it: "),
        ({"wrong": True}, "the plan differs from it by 1.0e-01 (at most 1e-03 allowed)"),
    ],
)
def test_a_build_that_fails_leaves_nothing(
    tmp_path: Path, version: str, what: dict[str, object], said: str
) -> None:
    found = built(version, tmp_path, **what)

    assert said in str(found["error"])
    assert str(found["error"]).isprintable()
    assert not list((tmp_path / "out").iterdir()) if (tmp_path / "out").exists() else True


@pytest.mark.parametrize("settings", [{"batches": ((2, 1, 4),)}, {"batches": ((0, 1, 1),)}, {"level": 6}])
def test_settings_that_make_no_sense(settings: dict[str, object]) -> None:
    with pytest.raises(UsageError, match="expected"):
        BuildSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.skipif(is_installed(), reason="this machine has TensorRT")
def test_without_tensorrt_it_says_how_to_get_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="TensorRT is not installed: install it from NVIDIA"):
        build_plan(tiny_engine(tmp_path / "tiny.onnx"), tmp_path / "tiny.plan")


def test_a_plan_has_one_size(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its height and width may vary, and a plan has one size"):
        build_plan(tiny_flow_engine(tmp_path / "flow.onnx"), tmp_path / "flow.plan")


def test_a_text_encoder_is_compared_on_token_ids() -> None:
    spec = replace(
        tiny_spec(),
        input=Input("tokens", "text", "int32", ("batch", 77)),
        text=Text(images="tiny", scale=100.0, merges="a b\nab c</w>"),
    )
    start, end = 514, 515  # 256 bytes, 256 that end a word, and two merges come before
    rows = _noise(spec, (2, 77))

    assert rows.dtype == np.int32
    for row in rows:
        (last,) = np.flatnonzero(row == end)
        assert row[0] == start
        assert row[1:last].min() >= 0
        assert row[1:last].max() < start
        assert not row[last + 1 :].any()
    assert rows[1, -1] == end, "the longest text"


def test_the_error_is_that_of_the_worst_row() -> None:
    expected = np.array([[1000.0, 0.0], [0.0, 1.0], [0.0, 0.0]], np.float32)
    found = expected.copy()
    found[1, 1] = 1.5

    assert _relative(found, expected) == pytest.approx(0.5)
    assert _relative(expected, expected) == 0
    found[0, 1] = np.nan
    assert np.isnan(_relative(found, expected))
