"""Frames scored against texts: `vfx-run --pred-texts` and `ZeroShot`, on a small CLIP exported here."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from make_video import make_video
from run_kit import vfx_run
from tiny import tiny_engine
from vfx_engines import Output, read_spec
from vfx_engines.errors import InputError, UsageError
from vfx_runtime import ZeroShot, extract

torch = pytest.importorskip("torch")

from clip_texts import LAYERS, small_archive, small_clip, small_state, text_features, vocabulary_file
from vfx_export.exporting import export_model
from vfx_export.model import Download
from vfx_export.text_exporting import export_text_encoder

NONE = Download("https://localhost/none")
TEXTS = ["a photo of a dog", "a photo of a cat", "Größe 12", "x", "y", "z"]


def export_text(folder: Path, file: str, name: str, checkpoint: Path) -> None:
    export_text_encoder(
        small_clip(name, NONE, NONE),
        folder / f"{file}.onnx",
        checkpoint=checkpoint,
        vocabulary=folder / "merges.txt.gz",
    )


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with image and text engines, a list of texts (with a BOM and empty lines) and a video."""
    folder = tmp_path_factory.mktemp("zero_shot")
    vocabulary_file(folder / "merges.txt.gz")
    archive, another = small_archive(folder / "a.pt"), small_archive(folder / "b.pt", seed=3)
    export_model(small_clip("small", NONE, NONE), folder / "small.onnx", checkpoint=archive)
    export_text(folder, "small_text", "small", archive)
    export_text(folder, "other_text", "other", archive)
    export_text(folder, "other_weights", "small", another)
    tiny_engine(folder / "tiny.onnx")
    make_video(folder / "a.mp4", frames=3)
    (folder / "texts.txt").write_text("\n".join(["\ufeff" + TEXTS[0], "", *TEXTS[1:], ""]), "utf-8")
    return folder


def test_probabilities_are_those_of_the_formula(place: Path) -> None:
    features = extract(place / "a.mp4", place / "small.onnx").arrays["clip"]
    judge = ZeroShot(place / "small_text.onnx", TEXTS)
    from vfx_runtime.tokenizer import Tokenizer

    assert judge.spec.text is not None
    ids = torch.from_numpy(Tokenizer(judge.spec.text, 77)(TEXTS))
    texts = text_features(small_state(), ids, LAYERS).double()
    images = torch.from_numpy(features).double()
    cosines = torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    want = (100 * cosines).softmax(1).numpy()
    got = judge.probabilities(features)
    np.testing.assert_allclose(got, want, atol=1e-4)
    np.testing.assert_allclose(got.sum(1), 1)
    with pytest.raises(InputError, match=re.escape("features [2, 5]: expected 24 numbers per row")):
        judge.probabilities(np.zeros((2, 5), np.float32))


def test_more_texts_than_a_call_takes_keep_their_order(place: Path) -> None:
    many = [f"number {number}" for number in range(70)]
    rows = np.random.default_rng(0).standard_normal((2, 24)).astype(np.float32)
    together = ZeroShot(place / "small_text.onnx", many).logits(rows)
    alone = ZeroShot(place / "small_text.onnx", [many[53]]).logits(rows)
    np.testing.assert_allclose(together[:, 53:54], alone, atol=1e-3)


def test_every_row_is_printed_with_its_likeliest_texts(place: Path, tmp_path: Path) -> None:
    result = vfx_run(
        *("--engine", place / "small.onnx", place / "a.mp4", "--output", tmp_path, "--show-pred"),
        *("--pred-texts", place / "texts.txt"),
    )
    assert result.exit_code == 0, result.stderr
    assert "texts: 6, small_text, OpenVINO" in result.stderr
    lines = [line for line in result.stderr.splitlines() if re.match(r"a \d", line)]
    assert len(lines) == 3
    features = extract(place / "a.mp4", place / "small.onnx")
    chances = ZeroShot(place / "small_text.onnx", TEXTS).probabilities(features.arrays["clip"])
    for line, row, (start, end) in zip(lines, chances, features.timestamps_ms / 1000, strict=True):
        best = np.argsort(-row)[:5]
        said = ", ".join(f"{TEXTS[i]} {row[i]:.3f}" for i in best)
        assert line == f"a {start:.2f}-{end:.2f} s: {said}"


def test_an_encoder_elsewhere_is_named(place: Path, tmp_path: Path) -> None:
    moved = tmp_path / "texts.onnx"
    moved.write_bytes((place / "small_text.onnx").read_bytes())
    result = vfx_run(
        *("--engine", place / "small.onnx", place / "a.mp4", "--output", tmp_path / "out", "--show-pred"),
        *("--pred-texts", place / "texts.txt", "--text-engine", moved, "--backend", "onnxruntime"),
    )
    assert result.exit_code == 0, result.stderr
    assert "texts: 6, small_text, ONNX Runtime" in result.stderr


@pytest.mark.parametrize(
    ("engine", "text_engine", "texts", "says"),
    [
        ("small", None, b"\n \n", "no texts in it, expected one per line"),
        ("small", None, b"a dog\n\xff\xfe", "byte 6 is not UTF-8; expected UTF-8, one text per line"),
        ("small", None, None, "No such file or directory"),
        ("small", None, b"dog " * 200, "tokens, at most 75 fit: shorten it"),
        ("tiny", None, b"dog", "no text encoder at {place}/tiny_text.onnx: export it with --text"),
        ("small", "other_text", b"dog", "other_text goes with other, the engine is small"),
        ("small", "other_weights", b"dog", "small_text is of the weights b.pt, small of a.pt, another file"),
        ("small", "small", b"dog", "small takes frames, expected a text encoder: export one with --text"),
        ("small", "none", b"dog", "No such file or directory; expected an engine file"),
        ("small_text", None, b"dog", "small_text takes texts: give it as --text-engine"),
    ],
)
def test_what_does_not_fit_is_one_line(
    place: Path, tmp_path: Path, engine: str, text_engine: str | None, texts: bytes | None, says: str
) -> None:
    file = tmp_path / "given.txt"
    if texts is not None:
        file.write_bytes(texts)
    given = ("--text-engine", place / f"{text_engine}.onnx") if text_engine else ()
    result = vfx_run(
        *("--engine", place / f"{engine}.onnx", place / "a.mp4", "--output", tmp_path / "out"),
        *("--show-pred", "--pred-texts", file, *given),
    )
    assert result.exit_code in (1, 2)
    (line,) = [line for line in result.stderr.splitlines() if not line.startswith("vfx-run: RANDOM")]
    assert says.format(place=place) in line
    assert not (tmp_path / "out").exists()


def test_options_that_go_together(place: Path) -> None:
    for given, says in (
        (("--pred-texts", place / "texts.txt"), "--pred-texts goes with --show-pred"),
        (("--text-engine", place / "small_text.onnx"), "--text-engine goes with --pred-texts"),
        (("--show-pred",), "has no classifier: export it with --head, or give --pred-texts (CLIP)"),
    ):
        result = vfx_run("--engine", place / "small.onnx", place / "a.mp4", *given)
        assert result.exit_code == 2
        assert says in result.stderr


def test_features_of_another_length_are_refused(place: Path) -> None:
    spec = read_spec(place / "small.onnx")
    longer = dataclasses.replace(spec, outputs=(Output("clip", (25,)),))
    with pytest.raises(UsageError, match=re.escape("small_text gives [24], small [25]: export both")):
        ZeroShot(place / "small_text.onnx", ["dog"]).check(longer)


def test_no_texts_are_refused(place: Path) -> None:
    with pytest.raises(UsageError, match="no texts"):
        ZeroShot(place / "small_text.onnx", [])
    with pytest.raises(UsageError, match="expected a sequence"):
        ZeroShot(place / "small_text.onnx", "a photo of a dog")
