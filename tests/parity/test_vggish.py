"""VGGish against the public implementation: the same checkpoint, the same sound, the same numbers."""

from __future__ import annotations

import wave
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray

from exports import heavy_in_ci
from parity_kit import chirp, e2e, kit, shared, video
from tolerances import (
    LOG_MEL,
    PARITY,
    RESAMPLED_LOG_MEL,
    SOUND_END_TO_END,
    TIMESTAMP_MS,
    VGGISH_BF16,
)
from vfx_engines import open_engine, read_spec
from vfx_engines.errors import CheckpointError, VfxError
from vfx_export.backbones.vggish import SAMPLES, STEP, VGGish, read_pca
from vfx_export.catalogue import find
from vfx_export.cli import main
from vfx_export.exporting import export_model
from vfx_runtime import extract

BOUNDS = PARITY | {"bf16": VGGISH_BF16}
Engines = Callable[[str], Path]


def relative(got: Any, want: Any) -> float:
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


def windows(samples: NDArray[np.float64]) -> NDArray[np.float32]:
    count = (len(samples) - SAMPLES) // STEP + 1
    return np.stack([samples[k * STEP : k * STEP + SAMPLES] for k in range(count)]).astype(np.float32)


def pca_file() -> Path:
    return shared("parity") / "vggish" / "pca.npz"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("vggish") / "vggish.pth"
    state = kit("vggish").checkpoint()
    torch.save({key: torch.from_numpy(value.copy()) for key, value in state.items()}, path)
    return path


@pytest.fixture(scope="module")
def engines(checkpoint: Path) -> Engines:
    """Exports with the post-processing, each made when it is first asked for."""

    def engine(precision: Any) -> Path:
        path = checkpoint.with_name(f"{precision}.onnx")
        if not path.exists():
            export_model(find("vggish"), path, checkpoint=checkpoint, precision=precision, pca=pca_file())
        return path

    return engine


@pytest.fixture(scope="module")
def network(checkpoint: Path) -> VGGish:
    module = VGGish().eval()
    module.load_state_dict(torch.load(checkpoint, weights_only=True))
    module.add_pca(*read_pca(pca_file()))
    return module


@pytest.mark.parametrize(
    ("precision", "backend"),
    [
        ("fp32", "openvino"),
        ("fp32", "onnxruntime"),
        heavy_in_ci("fp16", "onnxruntime"),
        heavy_in_ci("bf16", "openvino"),
    ],
)
def test_exported_engine_gives_the_golden_numbers(engines: Engines, precision: str, backend: Any) -> None:
    golden = kit("vggish").golden["audio.features_16000"]
    with open_engine(engines(precision), backend=backend) as engine:
        got = engine.run(windows(chirp(16_000)))
    assert relative(got["vggish"], golden) < BOUNDS[precision]
    # The quantiser has no golden numbers for sound: it is applied to the engine's own features here.
    vectors, means = read_pca(pca_file())
    want = np.rint((np.clip((got["vggish"] - means) @ vectors.T, -2, 2) + 2) * 63.75)
    if precision != "bf16":  # whose product is rounded too
        assert np.abs(got["pca"] - want).max() <= 1
    np.testing.assert_array_equal(got["pca"], np.rint(got["pca"]))
    assert relative(got["pca"], want) < BOUNDS[precision] + 0.5 / 100


def test_the_front_end_is_that_of_audioset(network: VGGish) -> None:
    with torch.no_grad():
        got = network.log_mel(torch.from_numpy(windows(chirp(16_000)))).numpy()
    assert relative(got, kit("vggish").golden["audio.patches_16000"]) < LOG_MEL


def test_the_network_and_its_post_processing_are_the_published_ones(network: VGGish) -> None:
    golden = kit("vggish")
    patches = torch.from_numpy(golden.inputs()[0][:, 0])
    with torch.no_grad():
        features, pca = network.embed(patches)
    assert relative(features.numpy(), golden.golden["main.features"]) < PARITY["fp32"]
    np.testing.assert_array_equal(pca.numpy(), golden.golden["main.pca"])
    # The original truncates where the PyTorch code rounds: never more than one level.
    assert set((pca.numpy() - golden.golden["main.pca_uint8"]).ravel()) <= {0.0, 1.0}


@pytest.mark.parametrize("channels", [1, 2])
def test_sound_of_another_rate_is_resampled_as_published(
    tmp_path: Path, engines: Engines, network: VGGish, channels: int
) -> None:
    path = tmp_path / "chirp.wav"
    with wave.open(str(path), "wb") as out:
        out.setnchannels(channels)
        out.setsampwidth(2)
        out.setframerate(44_100)
        both = np.stack([chirp(44_100, seed) for seed in range(channels)], axis=1)
        out.writeframes(np.rint(both * 32768).astype("<i2").tobytes())
    from vfx_runtime.audio import sound_windows

    spec = read_spec(engines("fp32"))
    got = np.stack([window.samples for window in sound_windows(path, spec, spec.sampling)])
    with torch.no_grad():
        patches = network.log_mel(torch.from_numpy(got)).numpy()
    golden = kit("vggish").golden
    name = "audio.patches_44100" if channels == 1 else "audio.patches_stereo_44100"
    assert relative(patches, golden[name]) < RESAMPLED_LOG_MEL
    if channels == 1:
        rows = extract(path, engines("fp32")).arrays["vggish"]
        assert relative(rows, golden["audio.features_44100"]) < SOUND_END_TO_END


def test_rows_of_a_video_are_those_of_video_features(engines: Engines) -> None:
    want = e2e("vggish")["vggish"]
    got = extract(video("v_GGSY1Qvo990.mp4"), engines("fp32"))
    assert got.arrays["vggish"].shape == want.shape
    assert (
        max(relative(row, target) for row, target in zip(got.arrays["vggish"], want, strict=True))
        < SOUND_END_TO_END
    )
    starts = np.arange(len(want)) * 960.0
    np.testing.assert_allclose(got.timestamps_ms, np.stack([starts, starts + 975], 1), atol=TIMESTAMP_MS)
    np.testing.assert_array_equal(got.frame_range[:, 0], starts * 44.1)


def test_half_a_step_has_every_other_row_of_a_whole_one(engines: Engines) -> None:
    whole = extract(video("v_ZNVhz7ctTq0.mp4"), engines("fp32"))
    half = extract(video("v_ZNVhz7ctTq0.mp4"), engines("fp32"), step=STEP // 2)
    np.testing.assert_allclose(half.timestamps_ms[::2], whole.timestamps_ms, atol=TIMESTAMP_MS)
    assert relative(half.arrays["vggish"][::2], whole.arrays["vggish"]) < PARITY["fp32"]


@pytest.mark.slow
@pytest.mark.ci
def test_other_weights_agree_with_torch(tmp_path: Path) -> None:
    """A seed that no golden number was made for."""
    state = {key: torch.from_numpy(value.copy()) for key, value in kit("vggish").checkpoint(seed=7).items()}
    torch.save(state, tmp_path / "seed7.pth")
    export_model(find("vggish"), tmp_path / "seed7.onnx", checkpoint=tmp_path / "seed7.pth")
    module = VGGish().eval()
    module.load_state_dict(state)
    samples = windows(chirp(16_000, seed=3))
    with torch.no_grad():
        (want,) = module(torch.from_numpy(samples))
    with open_engine(tmp_path / "seed7.onnx") as engine:
        assert list(got := engine.run(samples)) == ["vggish"]
    assert relative(got["vggish"], want.numpy()) < PARITY["fp32"]


def test_the_spec_says_what_was_put_in(engines: Engines) -> None:
    spec = read_spec(engines("fp32"))
    assert (spec.input.shape, spec.sampling.step, spec.sampling.fps) == (("batch", 15_600), 15_360, 16_000)
    assert [output.name for output in spec.outputs] == ["vggish", "pca"]
    assert "post-processing of pca.npz, SHA-256" in spec.weights.source


def _pca(**arrays: Any) -> Callable[[Path], None]:
    return lambda path: np.savez(path, **arrays)


GOOD = {"pca_eigen_vectors": np.eye(128), "pca_means": np.zeros((128, 1))}


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "cannot be read: No such file"),
        (lambda path: path.write_bytes(b"text"), "not a zip file"),
        (_pca(pca_means=np.zeros(128)), "pca_eigen_vectors"),
        (_pca(**GOOD | {"pca_eigen_vectors": np.eye(64)}), r"expected \[128, 128\]"),
        (_pca(**GOOD | {"pca_means": np.full(128, np.nan)}), "NaN"),
        (_pca(**GOOD | {"pca_means": np.array([print] * 128)}), "allow_pickle=False"),
        (_pca(**GOOD | {"pca_eigen_vectors": np.zeros((2000, 2000))}), "takes more than"),
    ],
)
def test_other_files_than_the_parameters_are_refused(
    tmp_path: Path, write: Callable[[Path], None], said: str
) -> None:
    path = tmp_path / "pca.npz"
    write(path)
    with pytest.raises(CheckpointError, match=said) as caught:
        read_pca(path)
    assert str(caught.value).isprintable()


def test_parameters_are_read_in_either_shape(tmp_path: Path) -> None:
    np.savez(tmp_path / "pca.npz", **GOOD)
    vectors, means = read_pca(tmp_path / "pca.npz")
    assert (vectors.shape, means.shape, vectors.dtype) == ((128, 128), (128,), np.float32)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--model", "vggish", "--head"], "--head: vggish has no classifier"),
        (["--model", "vggish", "--frames", "8000"], "takes windows of 15600 and no other length"),
        (["--model", "i3d", "--pca", "pca.npz"], "--pca: i3d has no published post-processing"),
    ],
)
def test_what_vggish_has_not_is_refused_before_the_download(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_the_command_lists_it_and_exports_it(tmp_path: Path, checkpoint: Path) -> None:
    assert "vggish" in CliRunner().invoke(main, ["--list"]).stdout
    broken = tmp_path / "other.npz"
    np.savez(broken, means=np.zeros(3))
    result = CliRunner().invoke(
        main,
        f"--model vggish --checkpoint {checkpoint} --format onnx --output {tmp_path} --pca {broken}".split(),
    )
    assert result.exit_code == 1
    assert "expected vggish_pca_params.npz" in result.stderr
    assert not (tmp_path / "vggish.onnx").exists()


def test_another_network_s_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"features.0.weight": torch.zeros(64, 3, 3, 3)}, tmp_path / "vgg.pth")
    with pytest.raises(VfxError, match="does not fit vggish"):
        export_model(find("vggish"), tmp_path / "v.onnx", checkpoint=tmp_path / "vgg.pth")
