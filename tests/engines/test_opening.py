"""From a file to a running engine on both CPU backends, and every file that is none."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper

from tiny import FRAMES, SIZE, tiny_engine, tiny_features, tiny_spec
from tolerances import TINY
from vfx_engines import EngineError, EngineSpec, SpecError, UsageError, VfxError, open_engine, read_spec
from vfx_engines.plan_file import write_plan
from vfx_engines.spec import METADATA_KEY, Crop, Input, Output, Plan, Resize, Transform
from vfx_engines.tensorrt_api import is_installed

BACKENDS = ("openvino", "onnxruntime")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("tiny") / "tiny.onnx")


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> Any:
    return request.param


def windows(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (count, FRAMES, SIZE, SIZE, 3), np.uint8)


def refusal(path: str | Path, kind: type[VfxError] = EngineError, **options: Any) -> str:
    with pytest.raises(VfxError) as caught, open_engine(path, **options) as engine:
        engine.run(windows(1))
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.isprintable(), message
    return message


def rewritten(tiny: Path, path: Path, change: Callable[[onnx.ModelProto], None]) -> Path:
    model = onnx.load(tiny)
    change(model)
    # What is changed on purpose must not look damaged.
    for entry in [entry for entry in model.metadata_props if entry.key == "vfx_sha256"]:
        model.metadata_props.remove(entry)
    onnx.save(model, path)
    return path


def with_spec(tiny: Path, path: Path, spec: EngineSpec | str) -> Path:
    text = spec if isinstance(spec, str) else spec.to_json()

    def change(model: onnx.ModelProto) -> None:
        del model.metadata_props[:]
        model.metadata_props.add(key=METADATA_KEY, value=text)

    return rewritten(tiny, path, change)


@pytest.mark.parametrize("count", [1, 3, 4, 7])
def test_numbers_are_right_for_any_number_of_windows(tiny: Path, backend: Any, count: int) -> None:
    pixels = windows(count)
    with open_engine(tiny, backend=backend, batch=3, threads=2) as engine:
        assert engine.batch == 3
        got = engine.run(pixels)
    assert list(got) == ["features"]
    assert got["features"].dtype == np.float32
    np.testing.assert_allclose(got["features"], tiny_features(pixels), rtol=TINY)


def test_slots_in_flight_together_give_each_its_own(tiny: Path, backend: Any) -> None:
    with open_engine(tiny, backend=backend, batch=2, threads=2) as engine:
        assert engine.slots >= 2
        for turn in range(20):
            given = [windows(1 + (turn + slot) % 2, seed=10 * turn + slot) for slot in range(engine.slots)]
            for slot, pixels in enumerate(given):
                engine.buffer(slot)[: len(pixels)] = pixels
                engine.submit(slot, len(pixels))
            order = random.Random(turn).sample(range(engine.slots), engine.slots)
            got = {slot: engine.collect(slot)["features"] for slot in order}
            for slot, pixels in enumerate(given):
                np.testing.assert_allclose(got[slot], tiny_features(pixels), rtol=TINY)


def test_an_engine_may_be_closed_with_slots_in_flight_and_twice(tiny: Path, backend: Any) -> None:
    engine = open_engine(tiny, backend=backend)
    for slot in range(engine.slots):
        engine.submit(slot, 1)
    engine.close()
    engine.close()


def test_several_outputs_come_by_name(tmp_path: Path, backend: Any) -> None:
    path = tiny_engine(tmp_path / "head.onnx", labels=True)
    pixels = windows(2)
    with open_engine(path, backend=backend) as engine:
        assert engine.spec == read_spec(path) == tiny_spec(labels=True)
        got = engine.run(pixels)
    assert {name: array.shape for name, array in got.items()} == {"features": (2, 4), "logits": (2, 5)}
    np.testing.assert_allclose(got["logits"][:, :4], tiny_features(pixels), rtol=TINY)


def test_what_runs_is_said(tiny: Path) -> None:
    with open_engine(tiny) as engine:
        assert engine.name.startswith("OpenVINO ")
        assert engine.name.endswith(", CPU, fp32")
        assert engine.precision == "fp32"
    with open_engine(tiny, backend="onnxruntime", precision="bf16") as engine:
        assert engine.name.startswith("ONNX Runtime ")
        assert engine.name.endswith(", CPU, fp32, ONNX Runtime has no bf16 on CPUs")
        assert engine.precision == "fp32"


def test_the_batch_is_chosen_by_the_size_of_a_window(tiny: Path) -> None:
    with open_engine(tiny) as engine:
        assert engine.batch == 8 * 224 * 224 // (FRAMES * SIZE * SIZE)


@pytest.mark.parametrize(
    "name",
    [
        "with space.onnx",
        "üñ漢.onnx",
        "q'u\"o.onnx",
        "new\nline.onnx",
        "a;b$(c)[d].onnx",
        "a.json",
        "suffixless",
    ],
)
def test_any_name_will_do(tiny: Path, tmp_path: Path, backend: Any, name: str) -> None:
    path = tmp_path / "dir ectory" / name
    path.parent.mkdir()
    path.write_bytes(tiny.read_bytes())
    with open_engine(str(path), backend=backend, batch=1) as engine:
        np.testing.assert_allclose(engine.run(windows(1))["features"], tiny_features(windows(1)), rtol=TINY)


def test_files_that_are_no_engine(tiny: Path, tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "none.onnx")
    assert "directory" in refusal(tmp_path)
    assert "name too long" in refusal(tmp_path / ("x" * 300))
    assert "null byte" in refusal(tmp_path / "a\0b")
    contents = {
        "empty": (b"", "zero bytes"),
        "random": (random.Random(0).randbytes(5000), "not an ONNX file, or damaged"),
        "text": (b"<html>404</html>", "not an ONNX file, or damaged"),
        "two\nlines": (b"<html>404</html>", r"two\nlines.onnx': not an ONNX file"),
    }
    for name, (content, says) in contents.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        assert says in refusal(path)


def test_every_truncation_is_an_error(tiny: Path, tmp_path: Path) -> None:
    whole, path = tiny.read_bytes(), tmp_path / "cut.onnx"
    for length in [*range(0, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(EngineError) as caught:
            read_spec(path)
        assert str(caught.value).isprintable()


def test_random_damage_is_one_line_or_an_engine(tiny: Path, tmp_path: Path, backend: Any) -> None:
    whole, path, rng = tiny.read_bytes(), tmp_path / "damaged.onnx", random.Random(0)
    messages = []
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 3))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            with open_engine(path, backend=backend, batch=1, threads=1) as engine:
                got = engine.run(np.zeros(engine.buffer(0).shape, engine.spec.input.dtype))
        except VfxError as error:
            messages.append(str(error))
        else:
            assert list(got) == [item.name for item in engine.spec.outputs]
    assert len(messages) > 50
    assert all(message.isprintable() for message in messages)


def test_onnx_without_a_spec(tiny: Path, tmp_path: Path) -> None:
    path = rewritten(tiny, tmp_path / "foreign.onnx", lambda model: model.ClearField("metadata_props"))
    message = refusal(path)
    assert "without a vfx spec" in message
    assert "--module FILE.py:factory" in message


def test_a_malformed_spec_and_a_newer_one_name_the_file(tiny: Path, tmp_path: Path) -> None:
    newer = tiny_spec().to_json().replace('"spec_version": 1', '"spec_version": 2')
    message = refusal(with_spec(tiny, tmp_path / "newer.onnx", newer), SpecError)
    assert message.startswith(f"{tmp_path}/newer.onnx: spec version 2 is newer than 1")
    assert "upgrade vfx" in message
    message = refusal(with_spec(tiny, tmp_path / "other.onnx", "{"), SpecError)
    assert message.startswith(f"{tmp_path}/other.onnx: spec is not JSON")


def other_specs() -> dict[str, tuple[EngineSpec, str]]:
    spec = tiny_spec()
    wide = ("batch", FRAMES, 20, 20, 3)
    said = "the spec says frames is uint8 ['batch', 4, 20, 20, 3], the graph says uint8 ['?', 4, 16, 16, 3]"
    longer = replace(spec.sampling, frames=5)
    return {
        "size": (
            replace(
                spec,
                input=replace(spec.input, shape=wide),
                transform=Transform(Resize("short_side", 20, 20), Crop(20, 20)),
            ),
            said,
        ),
        "frames": (
            replace(spec, input=replace(spec.input, shape=("batch", 5, SIZE, SIZE, 3)), sampling=longer),
            "['batch', 5, 16, 16, 3]",
        ),
        "input name": (
            replace(spec, input=replace(spec.input, name="video")),
            "the graph takes ['frames'], the spec says video",
        ),
        "dtype": (
            replace(spec, input=Input("frames", "audio", "float32", spec.input.shape)),
            "the spec says frames is float32",
        ),
        "output name": (
            replace(spec, outputs=(Output("rgb", (4,)),)),
            "the graph gives ['features'], the spec says rgb",
        ),
        "output length": (
            replace(spec, outputs=(Output("features", (5,)),)),
            "the spec says features is float32 ['batch', 5], the graph says float ['?', 4]",
        ),
        "output dtype": (
            replace(spec, outputs=(Output("features", (4,), dtype="float16"),)),
            "the spec says features is float16",
        ),
        "dynamic": (
            replace(spec, input=replace(spec.input, shape=("batch", FRAMES, "height", "width", 3))),
            "the graph says uint8 ['?', 4, 16, 16, 3]",
        ),
    }


@pytest.mark.parametrize("case", other_specs())
def test_a_spec_of_another_graph(tiny: Path, tmp_path: Path, backend: Any, case: str) -> None:
    """A backend would reshape the graph without a word, or fail at the first batch."""
    spec, says = other_specs()[case]
    path = with_spec(tiny, tmp_path / "other.onnx", spec)
    message = refusal(path, backend=backend)
    assert says in message
    assert message.startswith(f"{path}: ")


def test_a_graph_whose_batch_is_fixed(tiny: Path, tmp_path: Path) -> None:
    def fix(model: onnx.ModelProto) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1

    assert "the graph says uint8 [1, 4, 16, 16, 3]" in refusal(rewritten(tiny, tmp_path / "one.onnx", fix))


def test_a_graph_of_two_inputs(tiny: Path, tmp_path: Path) -> None:
    def add(model: onnx.ModelProto) -> None:
        model.graph.input.append(helper.make_tensor_value_info("flow", TensorProto.FLOAT, ["batch"]))

    message = refusal(rewritten(tiny, tmp_path / "two.onnx", add))
    assert "the graph takes ['frames', 'flow'], the spec says frames" in message


def test_a_graph_that_no_backend_can_run(tiny: Path, tmp_path: Path, backend: Any) -> None:
    def break_it(model: onnx.ModelProto) -> None:
        model.graph.node[1].op_type = "MadeUp"

    path = rewritten(tiny, tmp_path / "new\nline.onnx", break_it)
    message = refusal(path, backend=backend)
    assert r"new\nline.onnx': " in message
    assert "OpenVINO cannot compile it: " in message or "ONNX Runtime cannot load it: " in message
    assert "MadeUp" in message


def test_a_plan_without_what_it_needs(tmp_path: Path) -> None:
    plan = tmp_path / "i3d.plan"
    assert "no such file; expected a plan" in refusal(plan)
    plan.write_bytes(b"ftrt")
    assert "its spec i3d.plan.json is missing" in refusal(plan)
    (tmp_path / "i3d.plan.json").write_text(tiny_spec().to_json())
    assert "is the spec of an ONNX file" in refusal(plan, SpecError)
    built = Plan("11.4.0.106", "NVIDIA H200", (9, 0), "00" * 32, (1, 8, 8))
    write_plan(plan, b"ftrt", replace(tiny_spec(), plan=built))
    assert "runs on a GPU, not on 'cpu': give the .onnx file" in refusal(plan, UsageError, device="cpu")
    if not is_installed():
        assert "TensorRT is not installed: install it from NVIDIA's index" in refusal(plan, UsageError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["i3d.plan", "i3d.plan.json"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"device": "tpu"}, "device 'tpu': expected cpu, cuda, or cuda:N"),
        ({"device": "cuda:"}, "device 'cuda:'"),
        ({"device": "cuda:0", "backend": "openvino"}, "backend 'openvino' runs on a CPU"),
        ({"device": "cuda", "precision": "bf16"}, "cannot run in bf16"),
        ({"backend": "tensorrt"}, "backend 'tensorrt': expected openvino or onnxruntime"),
        ({"backend": ""}, "backend ''"),
        ({"precision": "int8"}, "precision 'int8': expected fp32 or fp16 or bf16"),
        ({"precision": "fp16"}, "holds fp32 tensors and cannot run in fp16: export it with --precision fp16"),
        ({"batch": 0}, "batch 0: expected 1 or more"),
        ({"batch": -3}, "batch -3"),
        ({"threads": 0}, "threads 0: expected 1 or more"),
        ({"threads": -1}, "threads -1"),
    ],
)
def test_arguments_that_there_are_not(tiny: Path, options: dict[str, Any], says: str) -> None:
    assert says in refusal(tiny, UsageError, **options)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_tensors_of_half_precision_stay_so(tiny: Path, tmp_path: Path, precision: Any) -> None:
    path = with_spec(tiny, tmp_path / "half.onnx", replace(tiny_spec(), precision="fp16"))
    assert f"holds fp16 tensors and cannot run in {precision}" in refusal(
        path, UsageError, precision=precision
    )


def test_a_batch_beyond_memory_is_one_line(tiny: Path, backend: Any) -> None:
    refusal(tiny, backend=backend, batch=10**12)


def test_onnx_runtime_may_be_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)  # what makes its import fail
    assert "pip install onnxruntime" in refusal(tiny, UsageError, backend="onnxruntime")
    with open_engine(tiny) as engine:
        assert engine.name.startswith("OpenVINO")


def test_openvino_may_be_missing(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a machine that only exports. What runs instead is said, as always."""
    monkeypatch.setattr("vfx_engines.opening.find_spec", lambda name: None)
    with open_engine(tiny) as engine:
        assert engine.name.startswith("ONNX Runtime")


def test_onnx_runtime_says_nothing_of_a_damaged_file(tiny: Path, tmp_path: Path) -> None:
    """Its retry with the same provider prints a banner on stdout, where paths are read from."""
    whole = tiny.read_bytes()
    path = tmp_path / "damaged.onnx"
    path.write_bytes(whole.replace(b"ReduceMean", b"Reduce\xff\xffan"))
    code = "import sys, vfx_engines as v; v.open_engine(sys.argv[1], backend='onnxruntime')"
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.stdout == ""
    assert "EngineError" in done.stderr


def test_importing_the_package_loads_neither_onnx_nor_a_backend() -> None:
    code = "import sys, vfx_engines; sys.exit(bool({'onnx', 'openvino', 'onnxruntime'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], env=os.environ, check=False).returncode == 0


def test_no_damaged_byte_goes_unseen(tiny: Path, tmp_path: Path) -> None:
    """ONNX has no checksum of its own: a flipped bit in a weight would load, and compute wrong rows."""
    whole = tiny.read_bytes()
    key = whole.index(b"vfx_sha256")
    chance = random.Random(0)
    for _ in range(500):
        place = chance.randrange(len(whole))
        if key - 4 <= place < key + 10:
            continue  # without its key the digest is not looked for, and all else is whole
        data = bytearray(whole)
        data[place] ^= 1 << chance.randrange(8)
        path = tmp_path / "damaged.onnx"
        path.write_bytes(data)
        with pytest.raises(EngineError) as caught:
            read_spec(path)
        assert str(caught.value).isprintable(), place


def test_a_spec_is_read_once_until_the_file_changes(tiny: Path, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    path.write_bytes(tiny.read_bytes())
    assert read_spec(path) is read_spec(path)
    path.write_bytes(tiny.read_bytes()[:-1])
    with pytest.raises(EngineError, match="damaged"):
        read_spec(path)


def test_a_file_that_another_tool_wrote_again_is_compared_by_what_it_says(tiny: Path, tmp_path: Path) -> None:
    model = onnx.load(tiny)
    digest = model.metadata_props.pop()
    assert digest.key == "vfx_sha256"
    model.metadata_props.insert(0, digest)
    onnx.save(model, tmp_path / "again.onnx")
    assert read_spec(tmp_path / "again.onnx") == read_spec(tiny)
    model.graph.name += "x"
    onnx.save(model, tmp_path / "changed.onnx")
    with pytest.raises(EngineError, match="its sha256 is not the one"):
        read_spec(tmp_path / "changed.onnx")


def test_a_plan_that_cannot_be_written_leaves_no_parts(tmp_path: Path) -> None:
    spec = replace(tiny_spec(), plan=Plan("11.4", "Simulated GPU", (9, 0), "00" * 32, (1, 4, 4)))
    (tmp_path / "tiny.plan").mkdir()
    with pytest.raises(IsADirectoryError):
        write_plan(tmp_path / "tiny.plan", b"plan", spec)
    assert not list(tmp_path.glob("*.part"))
    assert not list(tmp_path.glob(".*"))
