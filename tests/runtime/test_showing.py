"""The numbers behind the page that shows features, checked against NumPy, and the page's text."""

from __future__ import annotations

import base64
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from make_video import frame_number, make_video
from run_kit import vfx_run
from tiny import tiny_engine, tiny_spec
from vfx_runtime import showing
from vfx_runtime.charts import number_axis, png, time_axis
from vfx_runtime.feature_page import Shown, feature_page
from vfx_runtime.features import Features
from vfx_runtime.markup import data_island, tag
from vfx_runtime.show import main
from vfx_runtime.thumbnails import thumbnails

NASTY = "<script>alert('x')</script> & \"quotes\" \u202e.npz"


def rows_of(count: int, dim: int = 24, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, dim)).astype(np.float32)


def features_of(arrays: dict[str, np.ndarray], meta: dict[str, object] | None = None) -> Features:
    count = len(next(iter(arrays.values())))
    frames = np.stack([np.arange(count) * 4, np.arange(count) * 4 + 4], axis=1)
    spec = json.loads(tiny_spec(labels="logits" in arrays).to_json())
    return Features(arrays, frames, frames / 25 * 1000, 25.0, meta or {"spec": spec, "vfx_version": "1"})


def page_of(arrays: dict[str, np.ndarray], meta: dict[str, object] | None = None, name: str = "a.npz") -> str:
    return feature_page(Shown(name, features_of(arrays, meta), []))


def matrix_in(page: str) -> np.ndarray:
    """The first similarity matrix that the page's script would draw."""
    islands = [
        json.loads(text) for text in re.findall(r'<script type="application/json">(.*?)</script>', page)
    ]
    found = next(item for item in islands if "values" in item)
    values = np.frombuffer(base64.b64decode(found["values"]), "<i2").astype(float)
    values[values == found["none"]] = np.nan
    return values.reshape(found["count"], found["count"]) / found["full"]


# Numbers


@pytest.mark.parametrize("count", [1, 2, 57, 256])
def test_few_rows_are_compared_one_by_one(count: int) -> None:
    rows = rows_of(count)
    unit = rows.astype(np.float64) / np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
    found = showing.similarity(rows)
    np.testing.assert_allclose(found.values, unit @ unit.T, atol=1e-12)
    assert not found.averaged


def test_many_rows_are_averaged_as_the_whole_matrix_would_be() -> None:
    rows = rows_of(1003)
    rows[17], rows[500], rows[501] = np.nan, 0, np.inf
    known = np.isfinite(rows).all(1) & (rows != 0).any(1)
    unit = np.full(rows.shape, np.nan)
    unit[known] = rows[known] / np.linalg.norm(rows[known].astype(np.float64), axis=1, keepdims=True)
    whole = unit @ unit.T
    found = showing.similarity(rows, 64)
    expected = [
        [np.nanmean(whole[a:b, c:d]) for c, d in zip(found.bounds, found.bounds[1:], strict=False)]
        for a, b in zip(found.bounds, found.bounds[1:], strict=False)
    ]
    np.testing.assert_allclose(found.values, expected, atol=1e-12)
    assert found.values.shape == (64, 64)
    assert found.bounds[[0, -1]].tolist() == [0, 1003]


def test_a_group_of_rows_without_a_direction_has_no_value() -> None:
    rows = rows_of(4)
    rows[1], rows[2] = 0, np.nan
    values = showing.similarity(rows).values
    assert np.isnan(values).tolist() == [
        [False, True, True, False],
        [True] * 4,
        [True] * 4,
        [False, True, True, False],
    ]


def test_rows_at_the_ends_of_float32_have_a_direction() -> None:
    rows = np.array([[3e38, 3e38], [1e-40, 1e-40], [3e38, -3e38]], np.float32)
    np.testing.assert_allclose(showing.similarity(rows).values[0], [1, 1, 0], atol=1e-6)
    assert np.isfinite(showing.norms(rows)).all()


def test_lines_average_and_keep_extremes() -> None:
    values = np.arange(5000, dtype=float)
    values[10] = np.nan
    line = showing.line(values, 500)
    assert len(line.mean) == 500
    assert (line.mean[0], line.low[0], line.high[0]) == (4.5, 0, 9)
    assert (line.mean[1], line.low[1], line.high[1]) == (15, 11, 19)


def test_norms_and_motion() -> None:
    rows = rows_of(9)
    rows[3, 1] = np.nan
    norms = showing.norms(rows)
    assert np.isnan(norms[3])
    np.testing.assert_allclose(np.delete(norms, 3), np.linalg.norm(np.delete(rows, 3, 0), axis=1), rtol=1e-6)
    flow = np.zeros((2, 2, 4, 5), np.float32)
    flow[0, 0], flow[0, 1] = 3, -4
    assert showing.motion(flow).tolist() == [5, 0]


def test_chances_and_the_likeliest() -> None:
    logits = np.array([[0, np.log(3), 0], [1e30, 0, 0], [np.nan, 0, 0]], np.float32)
    shares = showing.chances(logits)
    np.testing.assert_allclose(shares[:2], [[0.2, 0.6, 0.2], [1, 0, 0]], atol=1e-6)
    assert np.isnan(shares[2]).all()
    assert showing.top(shares[0]).tolist() == [1, 0, 2]


def test_chances_of_classes_that_do_not_exclude_each_other() -> None:
    logits = np.array([[0, np.log(3), -1000], [np.nan, 0, 0]], np.float32)
    shares = showing.chances(logits, "sigmoid")
    np.testing.assert_allclose(shares[0], [0.5, 0.75, 0], atol=1e-7)
    assert np.isnan(shares[1]).all()


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0.9991, 1), (-3e5, 7e5), (4, 4), (0, 1e-30), (np.nan, 1)])
def test_axes_hold_their_values(low: float, high: float) -> None:
    axis = number_axis(low, high)
    assert 2 <= len(axis.ticks) <= 12
    if np.isfinite(low):
        assert 0 <= axis.at(low) <= axis.at(high) <= 1


@pytest.mark.parametrize("end", [0.04, 8, 59, 700, 20_000, 400_000])
def test_time_axes_have_a_few_ticks(end: float) -> None:
    axis = time_axis(0, end)
    assert 1 <= len(axis.ticks) <= 12
    assert all(0 <= axis.at(tick) <= 1 for tick, _ in axis.ticks)


def test_the_picture_is_of_the_values() -> None:
    values = np.array([[0, 0.25, 0.5], [1, np.nan, 2]])
    image = Image.open(io.BytesIO(png(values, 0, 1)))
    shown = np.asarray(image.convert("RGBA")).astype(int)
    assert image.size == (3, 2)
    assert shown[..., 3].tolist() == [[255, 255, 255], [255, 0, 255]]
    light = shown[..., :3].sum(-1)
    assert light[0, 0] < light[0, 1] < light[0, 2] < light[1, 0] == light[1, 2]


# The page


def test_the_page_holds_the_matrix_in_numbers() -> None:
    rows = rows_of(40)
    rows[7] = np.nan
    page = page_of({"features": rows})
    np.testing.assert_allclose(matrix_in(page), showing.similarity(rows).values, atol=5e-5)
    assert "1 row of 40 not finite (NaN or infinity): 7" in page


def test_a_multi_label_head_is_shown_by_its_sigmoid() -> None:
    spec = json.loads(tiny_spec(labels=True).to_json())
    arrays = {"features": rows_of(3, 4), "logits": np.zeros((3, 5), np.float32)}
    assert "softmax of the logits" in page_of(arrays, {"spec": spec})
    spec["outputs"][1]["activation"] = "sigmoid"
    page = page_of(arrays, {"spec": spec})
    assert "sigmoid of the logits" in page
    assert "0.500" in page


def test_five_thousand_rows_make_a_page_of_less_than_two_megabytes() -> None:
    rows = rows_of(5000, 512)
    page = page_of({"features": rows, "logits": rows_of(5000, 5)})
    assert len(page) < 2_000_000
    assert matrix_in(page).shape == (showing.CELLS, showing.CELLS)
    assert "Top 5 of 250 of 5,000 rows" in page


@pytest.mark.parametrize("count", [0, 1, 2])
def test_few_rows_are_a_page(count: int) -> None:
    page = page_of({"features": rows_of(count, 4), "logits": rows_of(count, 5)})
    assert ("No rows." in page) == (count == 0)


def test_what_cannot_be_shown_is_said() -> None:
    arrays = {
        "maps": np.ones((3, 8, 4, 4), np.float32),
        "flow": np.ones((3, 2, 8, 8), np.float32),
        "flat": np.ones(3, np.float32),
        "counts": np.ones((3, 2), np.int64),
        "short": np.ones((2, 4), np.float32),
    }
    page = page_of(arrays)
    assert "Rows are maps of 8 × 4 × 4." in page
    assert "Flow fields are pictures" in page
    assert "Rows are maps of no axis." in page
    assert "Not shown: rows of floating-point numbers are expected." in page
    assert "2 rows here, 3 in frame_range" in page


def test_all_nan_is_a_page() -> None:
    page = page_of(
        {"features": np.full((5, 4), np.nan, np.float32), "logits": np.full((5, 5), np.nan, np.float32)}
    )
    assert np.isnan(matrix_in(page)).all()
    assert "No row is finite." in page


@pytest.mark.parametrize(
    "meta", [{"spec": 3}, {"others": 7}, {"spec": {"spec_version": 99}, "others": [None]}]
)
def test_foreign_meta_is_said(meta: dict[str, object]) -> None:
    assert "no spec that this version of vfx reads" in page_of({"features": rows_of(3)}, meta)


def test_random_weights_are_said_loudly() -> None:
    spec = json.loads(tiny_spec().to_json())
    spec["weights"]["file"] = "flow.pth + random"
    page = page_of({"features": rows_of(3)}, {"spec": spec})
    assert (
        '<p class="warning" role="alert"><strong>RANDOM WEIGHTS</strong>: the features of tiny mean nothing'
        in page
    )


def test_names_are_text_and_never_markup() -> None:
    spec = json.loads(tiny_spec(labels=True).to_json())
    spec["model"] = "<img src=x onerror=alert(1)>"
    spec["weights"]["source"] = "</style><script>alert(2)</script>"
    spec["outputs"][1]["labels"][0] = "</script><script>alert(3)</script>"
    page = page_of({"<b>": rows_of(3, 4), "logits": rows_of(3, 5)}, {"spec": spec}, NASTY)
    assert "<img src=x" not in page
    assert "alert(1)" in page  # as text
    assert "<script>alert" not in page
    assert '<h2 id="output-0">&lt;b&gt;</h2>' in page
    assert page.count("<script>") == 1
    assert tag("p", 'a"<', title='a"<') == '<p title="a&quot;&lt;">a&quot;&lt;</p>'
    assert "</script>" not in data_island({"a": "</script>"}).removesuffix("</script>")


def test_file_names_that_are_no_unicode_are_shown() -> None:
    assert "\\udcff" in page_of({"features": rows_of(2)}, name="\udcff.npz")


# Thumbnails and the command


def test_thumbnails_are_of_the_frames_that_were_asked_for(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", width=160, height=120, frames=60)
    info, found = thumbnails(video, [3, 20, 41, 80])
    assert [thumb.frame for thumb in found] == [3, 20, 41]
    assert (info.width, info.height) == (160, 120)
    for thumb in found:
        pixels = np.asarray(Image.open(io.BytesIO(thumb.jpeg)).convert("RGB"))
        assert pixels.shape == (thumb.height, thumb.width, 3)
        assert frame_number(pixels) == thumb.frame


def show(*arguments: object) -> tuple[int, str, str]:
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    return result.exit_code, result.stdout, result.stderr


def test_the_command_writes_beside_the_features(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_engine(tmp_path / "tiny.onnx", labels=True)
    make_video(tmp_path / "a.mp4", frames=40)
    make_video(tmp_path / "other.mp4", frames=41)
    assert vfx_run("--engine", "tiny.onnx", "a.mp4").exit_code == 0
    assert show("features/a.npz", "--video", "a.mp4") == (0, "features/a.html\n", "")
    page = Path("features/a.html").read_text("utf-8")
    assert page.count('src="data:image/jpeg') == 12
    assert "https://" not in page
    assert "http://" not in page
    code, _, said = show("features/a.npz", "--video", "other.mp4", "--output", "b.html")
    assert code == 0
    assert "the thumbnails may not belong to them" in said
    assert "the thumbnails may not belong to them" in Path("b.html").read_text("utf-8")


@pytest.mark.parametrize("format", ["webdataset", "parquet"])
def test_a_video_of_a_shard_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, format: str) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_engine(tmp_path / "tiny.onnx")
    for name in ("clips/a.1.mp4", "clips/b.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_video(tmp_path / name, frames=40)
    assert vfx_run("--engine", "tiny.onnx", "clips", "--root", ".", "--format", format).exit_code == 0
    (shard,) = Path("features").glob("features-*")
    code, _, said = show(shard)
    assert (code, "holds 2 videos: say which one (clips/a.1, clips/b)" in said) == (2, True)
    assert show(shard, "--name", "clips/a.1") == (0, "features/clips/a.1.html\n", "")
    assert "clips/a.1" in Path("features/clips/a.1.html").read_text("utf-8")


def test_videos_of_one_name_in_two_folders_have_two_pages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_engine(tmp_path / "tiny.onnx")
    for name in ("x/a.mp4", "y/a.mp4"):
        (tmp_path / name).parent.mkdir()
        make_video(tmp_path / name, frames=8)
    run = ("--engine", "tiny.onnx", "x", "y", "--root", ".", "--format", "webdataset")
    assert vfx_run(*run).exit_code == 0
    (shard,) = Path("features").glob("features-*")
    for name in ("x/a", "y/a"):
        assert show(shard, "--name", name) == (0, f"features/{name}.html\n", "")
        assert name in Path(f"features/{name}.html").read_text("utf-8")


def test_a_page_does_not_leave_the_folder_of_its_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Video names come from the shard, which may be untrusted, and folders may be symbolic links."""
    monkeypatch.chdir(tmp_path)
    shard = Path("features/features-0123456789abcdef.tar")
    for name in ("/etc/a", "../a", "x/../../a", "x//a", "./a", "..", "", "x/"):
        code, _, said = show(shard, "--name", name)
        assert (code, said.count("\n")) == (2, 1)
        assert "below the shard's folder" in said
    tiny_engine(tmp_path / "tiny.onnx")
    (tmp_path / "x").mkdir()
    make_video(tmp_path / "x" / "a.mp4", frames=8)
    run = ("--engine", "tiny.onnx", "x", "--root", ".", "--format", "webdataset")
    assert vfx_run(*run).exit_code == 0
    (shard,) = Path("features").glob("features-*")
    Path("features/x").symlink_to(tmp_path / "x")
    code, _, said = show(shard, "--name", "x/a")
    assert (code, said.count("\n")) == (1, 1)
    assert "out of the output folder" in said
    assert not (tmp_path / "x" / "a.html").exists()


def test_foreign_arrays_with_a_video_are_a_page(tmp_path: Path) -> None:
    video = make_video(tmp_path / "a.mp4", frames=9)
    np.savez(tmp_path / "a.npz", frame_range=np.array(3.5), timestamps_ms=np.array("x"), fps=1.0, meta="[1]")
    assert show(tmp_path / "a.npz", "--video", video)[0] == 0


def test_what_is_wrong_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("damaged.npz").write_bytes(b"PK\x03\x04")
    Path("folder").mkdir()
    np.savez("a.npz", frame_range=np.zeros((1, 2)), timestamps_ms=np.zeros((1, 2)), fps=25.0, meta="{}")
    for arguments, code, message in (
        (("none.npz",), 1, "none.npz: no such file"),
        (("folder",), 2, "folder: a folder: give one of the .npz files or shards in it"),
        (("damaged.npz",), 1, "not a feature file of vfx, or damaged"),
        (("a.npy",), 2, "vfx-show reads .npz files"),
        (("a.npz", "--output", "a.npz"), 2, "this would replace the features"),
        (("a.npz", "--output", "damaged.npz"), 2, "whose name ends in .html"),
        (("a.npz", "--output", "none/a.html"), 2, "none/a.html: its folder does not exist"),
        (("a.npz", "--video", "none.mp4"), 1, "none.mp4"),
        (("a.npz", "--video", "."), 2, "was not made of one"),
        (("",), 2, "FEATURES: found the empty text, expected a path"),
        (("a.npz", "--video", ""), 2, "--video: found the empty text, expected a path"),
        (("s3://bucket/a.npz",), 2, "FEATURES: found a URL, expected a path of this machine"),
    ):
        found, _, said = show(*arguments)
        assert (found, message in said, said.count("\n")) == (code, True, 1), said
    assert not list(tmp_path.glob("*.html"))
