"""One export from start to end: what is in the file, and what leaves none."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

import own_modules
from own_modules import FRAMES, SIZE, Own, own_row, own_spec
from tolerances import PARITY
from vfx_engines import (
    EngineSpec,
    ExportError,
    Input,
    Output,
    OutputError,
    Resize,
    Sampling,
    Transform,
    UsageError,
    VfxError,
    open_engine,
    read_spec,
)
from vfx_export import export_model, export_module, find
from vfx_export.labels import kinetics400
from vfx_export.proof import TOLERANCES, example_inputs

SOUND = EngineSpec(
    model="sound",
    weights=own_spec().weights,
    precision="fp32",
    input=Input("samples", "audio", "float32", ("batch", 1600), blank=(0,)),
    sampling=Sampling(frames=1600, stride=1, step=1600),
    transform=Transform(),
    outputs=(Output("loudness", (4,)),),
)


def refusal(module: nn.Module, spec: EngineSpec, path: Path, kind: type[VfxError] = ExportError) -> str:
    """The message of an export that fails, and leaves the folder as it was."""
    before = held(path.parent)
    with pytest.raises(VfxError) as caught:
        export_module(module, spec, path)
    message = str(caught.value)
    assert type(caught.value) is kind, message
    assert message.isprintable(), message
    assert held(path.parent) == before
    return message


def held(folder: Path) -> dict[str, bytes]:
    if not folder.is_dir():
        return {}
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def relative(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


class Halves(nn.Module):
    """Two convolutions, of which one is to stay float32; bf16 holds its whole numbers without loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv3d(3, 64, 1), nn.Conv3d(64, 8, 1)

    def forward(self, frames: Tensor) -> Tensor:
        x = self.second(self.first(frames.float().permute(0, 4, 1, 2, 3)))
        return x.flatten(1)[:, :8]


def test_a_part_stays_float32_in_bf16(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The mark is in the file, and OpenVINO heeds it; a version that cannot computes all of it in fp32."""
    import openvino as ov

    from vfx_engines.backends import openvino

    spec = replace(own_spec("bf16"), outputs=(Output("features", (8,)),))
    torch.manual_seed(0)
    module = Halves()
    errors = {}
    for kept in ((), ("first",), ("first", "second")):
        path = tmp_path / f"{len(kept)}.onnx"
        proof = export_module(module, spec, path, float32=kept).proof
        assert proof is not None
        errors[len(kept)] = proof.error
        marked = {node.name for node in onnx.load(path).graph.node if node.name.startswith("float32/")}
        assert bool(marked) == bool(kept)
    if "BF16" in ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        assert errors[2] < PARITY["fp32"] < min(errors[0], errors[1])
        # What versions before 2026.3 make of the attribute: they drop one that they do not know.
        unknown = openvino._KEEPING.replace(openvino._KEPT, "Unknown")
        monkeypatch.setattr(openvino, "_KEEPING", unknown)
        for kept, precision in (0, "bf16"), (1, "fp32"):
            with open_engine(tmp_path / f"{kept}.onnx", backend="openvino") as engine:
                assert engine.precision == precision
        assert engine.name.endswith(", fp32, parts of it stay float32, which takes OpenVINO 2026.3")
    # fp32 has nothing to keep; a name that is nobody's would keep nothing.
    export_module(module, replace(spec, precision="fp32"), tmp_path / "a.onnx", float32=("first",))
    with pytest.raises(ExportError, match="no nodes of 'third', which should stay float32"):
        export_module(module, spec, tmp_path / "b.onnx", float32=("third",))


@pytest.mark.parametrize("backend", ["openvino", "onnxruntime"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_any_module_runs_as_an_engine(tmp_path: Path, precision: Any, backend: Any) -> None:
    stages: list[str] = []
    path = tmp_path / "a new folder" / "own.onnx"
    spec = export_module(Own(), own_spec(precision), path, stage=stages.append)
    assert stages == ["running the module in torch", "tracing", "comparing the file with the module"]
    assert list(held(tmp_path)) == [str(path)]
    pixels = np.random.default_rng(1).integers(0, 256, (5, FRAMES, SIZE, SIZE, 3), np.uint8)
    with open_engine(path, backend=backend, batch=2) as engine:
        assert engine.spec == spec
        got = engine.run(pixels)
    with torch.no_grad():
        want = Own()(torch.from_numpy(pixels))
    for name, tensor in zip(("features", "logits"), want, strict=True):
        assert relative(got[name], tensor.numpy()) < PARITY[precision]


def test_the_spec_in_the_file_is_the_one_that_is_returned(tmp_path: Path) -> None:
    spec = export_module(Own(), own_spec(), tmp_path / "own.onnx")
    assert read_spec(tmp_path / "own.onnx") == spec
    assert spec.proof is not None
    assert spec.proof.inputs == 2
    assert 0 < spec.proof.error < spec.proof.tolerance == TOLERANCES["fp32"]
    assert torch.__version__ in spec.proof.reference
    assert "OpenVINO" in spec.proof.reference
    positions = (FRAMES - 1) * (SIZE - 1) ** 2
    assert spec.macs == positions * 4 * 3 * 8 + 4 * 5
    assert spec.vfx_version
    added = {"proof": None, "macs": None, "vfx_version": ""}
    assert replace(spec, **added) == own_spec()


def test_the_same_export_gives_the_same_bytes_in_any_process(tmp_path: Path) -> None:
    export_module(Own(), own_spec(), tmp_path / "one.onnx")
    code = (
        "import sys; from pathlib import Path; from vfx_export import export_module;"
        "from own_modules import Own, own_spec; export_module(Own(), own_spec(), Path(sys.argv[1]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "7", "PYTHONPATH": str(Path(__file__).parents[1])}
    subprocess.run([sys.executable, "-c", code, str(tmp_path / "two.onnx")], env=environment, check=True)
    assert (tmp_path / "one.onnx").read_bytes() == (tmp_path / "two.onnx").read_bytes()


def test_a_list_of_tensors_and_a_single_one_are_outputs_too(tmp_path: Path) -> None:
    spec = replace(own_spec(), outputs=own_spec().outputs[:1])
    export_module(own_modules.OneOutput(), spec, tmp_path / "one.onnx")
    assert [item.name for item in onnx.load(tmp_path / "one.onnx").graph.output] == ["features"]


def test_sound_is_float32(tmp_path: Path) -> None:
    samples = example_inputs(SOUND)
    assert samples.dtype == np.float32
    assert samples.shape == (2, 1600)
    assert -1 <= samples.min() < -0.5 < 0.5 < samples.max() <= 1
    export_module(own_modules.Sound(), SOUND, tmp_path / "sound.onnx")
    with open_engine(tmp_path / "sound.onnx") as engine:
        got = engine.run(samples)["loudness"]
    assert relative(got, np.abs(samples).reshape(2, 4, 400).mean(2)) < PARITY["fp32"]


def test_example_pictures_use_the_whole_range_and_differ() -> None:
    pictures = example_inputs(own_spec())
    assert pictures.dtype == np.uint8
    assert pictures.shape == (2, FRAMES, SIZE, SIZE, 3)
    assert not np.array_equal(*pictures)
    assert pictures.min() < 30
    assert pictures.max() > 225


BAD = {
    "Swapped": "the module gives [[1, 5], [1, 4]] for one row, the spec says [[1, 4], [1, 5]]",
    "OneOutput": "the module gives [[1, 4]] for one row",
    "OneRow": "features came out as [1, 4], the spec says ['batch', 4]",
    "Mapping": "the module gives a dict, expected a tensor or a tuple of them",
    "Nothing": "the module gives a NoneType",
    "Raises": "the module does not run on uint8 [1, 4, 8, 8, 3]: the first line",
    "RaisesNothing": "the module does not run on uint8 [1, 4, 8, 8, 3]: RuntimeError",
    "NotANumber": "the module itself gives NaN or infinity in logits",
    "DependsOnData": "torch cannot trace it: Could not guard on data-dependent expression",
    "Untranslatable": "torch cannot trace it: No ONNX function found for",
    "Random": "fp32 differs from torch by",
    "Counts": "the module must compute the same at every call, from its input alone",
    "Baked": "the module gives [[2, 4], [1, 5]] for one row",
    "Fewer": "4], the spec says ['batch', 4]: name each dynamic axis",
    "Double": "features came out as float64, the spec says float32",
}


@pytest.mark.parametrize("name", BAD)
def test_a_module_that_goes_wrong_leaves_what_was_there(
    tmp_path: Path, name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "own.onnx").write_bytes(b"an engine of yesterday")
    message = refusal(getattr(own_modules, name)(), own_spec(), tmp_path / "own.onnx")
    assert message.startswith("own: ")
    assert BAD[name] in message
    assert capfd.readouterr() == ("", "")


def test_a_module_that_does_not_follow_into_half_precision(tmp_path: Path) -> None:
    export_module(own_modules.NoCast(), own_spec(), tmp_path / "own.onnx")
    message = refusal(own_modules.NoCast(), own_spec("fp16"), tmp_path / "own.onnx")
    assert "torch cannot trace it: Input type" in message
    assert "Half" in message


def test_named_axes_have_the_sizes_that_an_engine_is_opened_at(tmp_path: Path) -> None:
    spec = replace(
        own_spec(),
        input=replace(own_spec().input, shape=("batch", FRAMES, "height", "width", 3)),
        transform=Transform(Resize("short_side", SIZE, SIZE)),
        outputs=(Output("colours", (3,)),),
    )
    path = tmp_path / "own.onnx"
    export_module(own_modules.Sizeless(), spec, path)
    frames = np.random.default_rng(0).integers(0, 256, (2, FRAMES, 24, 40, 3), np.uint8)
    for backend in ("openvino", "onnxruntime"):
        with open_engine(path, backend=backend, sizes={"height": 24, "width": 40}) as engine:
            got = engine.run(frames)["colours"]
        want = own_modules.Sizeless()(torch.from_numpy(frames))
        np.testing.assert_allclose(got, want, rtol=1e-4)
    for sizes in (None, {"height": 24}, {"height": 24, "width": 40, "depth": 3}, {"height": 24, "width": 0}):
        with pytest.raises(UsageError, match=r"frames|height"):
            open_engine(path, sizes=sizes)


def test_places_that_cannot_be_written_are_said_before_the_work(tmp_path: Path) -> None:
    raises = own_modules.Raises()  # reached, it would be an ExportError
    (tmp_path / "file").write_text("a file")
    (tmp_path / "folder.onnx").mkdir()
    (tmp_path / "broken").symlink_to(tmp_path / "nowhere" / "else")
    cases = {
        "file/own.onnx": "File exists",
        "file/deeper/own.onnx": "Not a directory",
        "folder.onnx": "folder",
        "broken/own.onnx": "File exists",
        f"{'x' * 300}.onnx": "name too long",
        "file/two\nlines/own.onnx": r"file/two\nlines/own.onnx': cannot be written: Not a directory",
    }
    for name, says in cases.items():
        assert says in refusal(raises, own_spec(), tmp_path / name, OutputError)


def test_a_folder_that_nobody_may_write() -> None:
    """Not a folder without its write bit: root, whom containers run as, may write there."""
    with pytest.raises(OutputError, match=r"/proc/own\.onnx: cannot be written: "):
        export_module(Own(), own_spec(), Path("/proc/own.onnx"))


def test_a_full_disk(tmp_path: Path) -> None:
    (tmp_path / "own.onnx").write_bytes(b"an engine of yesterday")
    part = tmp_path / ".own.part.onnx"

    def fill(stage: str) -> None:
        if stage == "tracing":
            part.unlink()
            part.symlink_to("/dev/full")

    with pytest.raises(OutputError, match=r"own\.onnx: cannot be written: No space left on device"):
        export_module(Own(), own_spec(), tmp_path / "own.onnx", stage=fill)
    assert held(tmp_path) == {str(tmp_path / "own.onnx"): b"an engine of yesterday"}
    assert not part.is_symlink()


def test_a_link_in_place_of_the_part_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "other").write_bytes(b"of somebody else")
    (tmp_path / ".own.part.onnx").symlink_to("other")
    export_module(Own(), own_spec(), tmp_path / "own.onnx")
    assert (tmp_path / "other").read_bytes() == b"of somebody else"


def test_an_interrupted_export_leaves_nothing(tmp_path: Path) -> None:
    def stop(stage: str) -> None:
        if stage == "comparing the file with the module":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_module(Own(), own_spec(), tmp_path / "own.onnx", stage=stop)
    assert held(tmp_path) == {}


def test_the_graph_of_i3d(i3d_engines: Any, i3d_checkpoint: Path) -> None:
    path = i3d_engines("fp32", 16)
    model = onnx.load(path)
    assert [(item.domain, item.version) for item in model.opset_import] == [("", 18)]
    shapes = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert shapes == {
        "frames": ["batch", 16, 224, 224, 3],
        "rgb": ["batch", 1024],
        "logits": ["batch", 400],
    }
    operators = {node.op_type for node in model.graph.node}
    assert not operators & {"BatchNormalization", "ScatterND", "Shape", "Loop", "If"}
    assert {node.domain for node in model.graph.node} == {""}
    assert not model.functions
    assert [entry.key for entry in model.metadata_props] == ["vfx", "vfx_sha256"]
    assert b"/work/" not in path.read_bytes()
    assert str(Path.home()).encode() not in path.read_bytes()

    spec = read_spec(path)
    assert spec.model == "i3d"
    assert spec.weights.file == i3d_checkpoint.name
    assert spec.weights.sha256 == hashlib.sha256(i3d_checkpoint.read_bytes()).hexdigest()
    assert spec.sampling == Sampling(frames=16, stride=1, step=16, lead=1)
    assert spec.outputs[0] == Output("rgb", (1024,))
    assert spec.outputs[1] == Output(
        "logits", (400,), kind="logits", labels=kinetics400(), activation="softmax"
    )


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_the_tensors_of_i3d_are_of_its_precision(i3d_engines: Any, precision: str) -> None:
    model = onnx.load(i3d_engines(precision, 16))
    wide = onnx.TensorProto.FLOAT16 if precision == "fp16" else onnx.TensorProto.FLOAT
    kernels = [item.data_type for item in model.graph.initializer if len(item.dims) == 5]
    assert len(kernels) >= 57
    assert set(kernels) == {wide}


def test_random_weights_say_so(tmp_path: Path) -> None:
    spec = export_model(own_row(), tmp_path / "own.onnx", checkpoint=None, seed=3)
    assert read_spec(tmp_path / "own.onnx").weights == spec.weights
    assert (spec.weights.file, spec.weights.sha256) == ("random", None)
    assert spec.weights.source == "random, seed 3"
    assert [item.name for item in spec.outputs] == ["features"]
    export_model(own_row(), tmp_path / "again.onnx", checkpoint=None, seed=3)
    export_model(own_row(), tmp_path / "other.onnx", checkpoint=None, seed=4)
    with (
        open_engine(tmp_path / "own.onnx") as one,
        open_engine(tmp_path / "again.onnx") as two,
        open_engine(tmp_path / "other.onnx") as three,
    ):
        got = [engine.run(example_inputs(spec))["features"] for engine in (one, two, three)]
    np.testing.assert_array_equal(got[0], got[1])
    assert not np.allclose(got[0], got[2])


def test_the_windows_of_a_row(tmp_path: Path) -> None:
    spec = export_model(own_row(), tmp_path / "own.onnx", checkpoint=None, frames=6, head=True)
    assert spec.input.shape == ("batch", 6, SIZE, SIZE, 3)
    assert spec.sampling == Sampling(frames=6, stride=1, step=6, lead=1)
    assert spec.input.blank == (128, 128, 128)
    assert spec.outputs[1].labels == ("run", "jump", "sit", "stand", "lie")


def test_a_checkpoints_name_is_text_whatever_its_bytes(tmp_path: Path) -> None:
    checkpoint = tmp_path / "two\nlines\udcff.pt"
    torch.save(Own().state_dict(), checkpoint)
    spec = export_model(own_row(), tmp_path / "own.onnx", checkpoint=checkpoint)
    assert read_spec(tmp_path / "own.onnx").weights.file == spec.weights.file
    assert spec.weights.file == r"'two\nlines\udcff.pt'"


@pytest.mark.parametrize("frames", [9, 0, -1])
def test_too_few_frames_are_refused_before_anything_is_read(tmp_path: Path, frames: int) -> None:
    with pytest.raises(UsageError, match=f"--frames {frames}: i3d needs at least 10 frames"):
        export_model(find("i3d"), tmp_path / "i3d.onnx", checkpoint=tmp_path / "none.pt", frames=frames)
    assert held(tmp_path) == {}


class Levels(nn.Module):
    """Whole numbers, of which `off` are further from the sound than rounding can be in the graph."""

    def __init__(self, off: float) -> None:
        super().__init__()
        self.off = off

    def forward(self, samples: Tensor) -> Tensor:
        loudness = samples.reshape(samples.shape[0], 4, -1).abs().mean(2)
        return torch.round(loudness * 255) + (0.0 if torch.compiler.is_exporting() else self.off)


@pytest.mark.parametrize(("off", "quantised"), [(0.0, ()), (1.0, ("loudness",))])
def test_quantised_outputs_may_be_a_level_apart(
    tmp_path: Path, off: float, quantised: tuple[str, ...]
) -> None:
    spec = export_module(Levels(off), SOUND, tmp_path / "levels.onnx", quantised=quantised)
    assert spec.proof is not None
    assert spec.proof.error == 0


@pytest.mark.parametrize(("off", "quantised"), [(1.0, ()), (2.0, ("loudness",))])
def test_more_than_a_level_is_an_error(tmp_path: Path, off: float, quantised: tuple[str, ...]) -> None:
    with pytest.raises(ExportError, match="differs from torch"):
        export_module(Levels(off), SOUND, tmp_path / "levels.onnx", quantised=quantised)
    assert not (tmp_path / "levels.onnx").exists()
