"""vfx-bench measures every stage and reports it in full. The figures themselves are not tested."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from make_sound import make_sound
from make_video import make_video
from tiny import tiny_engine, tiny_spec
from tiny_flow import tiny_flow_engine
from tiny_sound import sound_engine
from vfx_engines.spec import Input, Text, Transform
from vfx_runtime.bench import main
from vfx_runtime.measuring import Cost, cpu_limit, gpu_limit
from vfx_runtime.report import Report

QUICK = ["--seconds", "0.05", "--rounds", "1"]


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_engine(tmp_path_factory.mktemp("engine") / "tiny.onnx")


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_video(tmp_path_factory.mktemp("video") / "a.mp4", frames=41)


def bench(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_json_holds_every_stage_of_every_round(engine: Path, video: Path) -> None:
    result = bench("--engine", engine, video, *QUICK, "--rounds", 2, "--batch", 3, "--batch", 5, "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    usual = found["rounds"][0][-1]["batch"] if found["rounds"][0][-1]["stage"] == "end to end" else None
    assert len(found["rounds"]) == 2
    for costs in found["rounds"]:
        assert [cost["stage"] for cost in costs].count("engine") == 3
        assert {cost["stage"] for cost in costs} == {"decode", "resize", "engine", "end to end"}
        assert {3, 5} < {cost["batch"] for cost in costs if cost["stage"] == "engine"}
        assert all(cost["seconds"] > 0 and cost["peak_bytes"] > 2**20 for cost in costs)
        (ends,) = [cost for cost in costs if cost["stage"] == "end to end"]
        assert (ends["frames"] % 41, ends["windows"] % 10) == (0, 0)
        assert usual in (None, ends["batch"])
    assert found["frames_per_window"] == pytest.approx(4.1)
    assert found["engine"]["model"] == "tiny"
    assert found["videos"] == {"count": 1, "size": "41 frames, 10 windows"}
    assert len(found["shares_of_limit"]) == 2


def test_table_and_chart(engine: Path, video: Path, tmp_path: Path) -> None:
    chart = tmp_path / "chart.png"
    result = bench("--engine", engine, video, *QUICK, "--chart", chart)

    assert result.exit_code == 0, result.output
    for said in ("decode alone", "resize alone", "engine alone, batch", "end to end, batch", "of the limit"):
        assert said in result.stdout
    assert "…" not in result.stdout
    assert chart.read_bytes().startswith(b"\x89PNG")


def test_without_a_video_one_is_made(engine: Path) -> None:
    result = bench("--engine", engine, *QUICK, "--json")

    assert result.exit_code == 0, result.output
    assert "no VIDEO given" in result.stderr
    assert json.loads(result.stdout)["videos"]["size"] == "500 frames, 125 windows"


def test_an_engine_of_sound(tmp_path: Path) -> None:
    engine, sound = sound_engine(tmp_path / "sound.onnx"), make_sound(tmp_path / "a.wav")
    result = bench("--engine", engine, sound, *QUICK, "--json")

    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["videos"] == {"count": 1, "size": "32000 samples, 20 windows"}
    assert {cost["stage"] for cost in found["rounds"][0]} == {"decode", "engine", "end to end"}
    assert found["frames_per_window"] == 1600
    assert found["limit_windows_per_second"] > 0

    chart = tmp_path / "chart.png"
    result = bench("--engine", engine, *QUICK, "--chart", chart)
    assert result.exit_code == 0, result.output
    assert "no VIDEO given: making one of 120 s of sound" in result.stderr
    assert "samples/s" in result.stdout
    assert "resize" not in result.stdout
    assert chart.exists()


def test_a_video_without_sound_is_named(tmp_path: Path, video: Path) -> None:
    result = bench("--engine", sound_engine(tmp_path / "sound.onnx"), *QUICK, video)

    assert result.exit_code == 1
    assert "a.mp4: no audio stream" in result.stderr


def test_an_engine_of_texts_is_refused(engine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = replace(
        tiny_spec(),
        input=Input("tokens", "text", "int32", ("batch", 77), (0,)),
        transform=Transform(),
        text=Text("clip", 100.0, "a b"),
    )
    monkeypatch.setattr("vfx_runtime.bench.read_spec", lambda file: spec)
    result = bench("--engine", engine, *QUICK)

    assert result.exit_code == 2
    assert "takes text, vfx-bench measures engines of frames and of sound" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--rounds", "0"], 2, "--rounds 0"),
        (["--seconds", "-1"], 2, "--seconds -1"),
        (["--batch", "0"], 2, "batch 0"),
        (["--device", "abacus"], 2, "abacus"),
        (["missing.mp4"], 1, "missing.mp4"),
        (["memory://clips/none.mp4"], 2, "memory://clips/none.mp4: vfx-bench measures local videos"),
        (["--chart", "/nowhere/chart.png"], 2, "/nowhere/chart.png"),
        (["--chart", "chart.jpg"], 2, "chart.jpg"),
        (["--engine", ""], 2, "--engine: found the empty text, expected a path"),
    ],
)
def test_errors_are_one_line(engine: Path, video: Path, arguments: list[str], code: int, said: str) -> None:
    videos = [] if "missing.mp4" in arguments else [video]
    result = bench("--engine", engine, *QUICK, *videos, *arguments)

    assert result.exit_code == code, result.output
    (line,) = [line for line in result.stderr.splitlines() if said in line]
    assert line.startswith("vfx-bench: ")


def test_a_short_video_is_named(engine: Path, tmp_path: Path) -> None:
    short = make_video(tmp_path / "short.mp4", frames=2)
    result = bench("--engine", engine, *QUICK, short)

    assert result.exit_code == 1
    assert "short.mp4: 2 frames" in result.stderr
    assert bench("--engine", engine, *QUICK, short, "--tail", "repeat").exit_code == 0


def cost(stage: str, *, windows: int = 0, frames: int = 0, seconds: float = 1, cpu: float = 1) -> Cost:
    return Cost(stage, windows, frames, seconds, cpu, 1, 1 if windows else None)


def test_the_limit_is_what_the_stages_cpu_seconds_allow() -> None:
    engine, decode = cost("engine", windows=10, cpu=2), cost("decode", frames=100, cpu=0.5)
    resize = cost("resize", frames=200, cpu=0.2)

    # 0.2 for the engine and 20 x (0.005 + 0.001) for the frames make 0.32 CPU-seconds, on 2 cores.
    assert cpu_limit(engine, decode, resize, 20, 2) == pytest.approx(2 / 0.32)
    # A GPU's engine costs the cores nothing: ten windows a second, or as many as are decoded if that is less.
    assert gpu_limit(engine, decode, 5) == pytest.approx(10)
    assert gpu_limit(engine, decode, 20) == pytest.approx(5)


def test_a_report_holds_each_round_against_its_own_limit() -> None:
    def measured(slow: float) -> list[Cost]:
        return [
            cost("engine", windows=10, cpu=2 * slow),
            cost("decode", frames=100, cpu=0.5 * slow),
            cost("resize", frames=200, cpu=0.2 * slow),
            cost("end to end", windows=5, frames=100, cpu=2, seconds=slow),
        ]

    machine = {"cores": 2}
    engine = {"macs": 100, "precision": "fp32", "device": "cpu"}
    report = Report(engine, machine, {}, 2000.0, [measured(1), measured(3)], 1)

    assert report.shares == pytest.approx([5 * 0.32 / 2] * 2)
    assert report.frames_per_window == 20
    assert report.rate("decode") == pytest.approx(100 / 20)
    assert report.cpu("engine") == pytest.approx((0.2 + 0.6) / 2)
    assert report.share_of_peak(10) == pytest.approx(0.5)


def test_an_engine_of_any_size_is_measured_at_that_of_the_videos(tmp_path: Path) -> None:
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    small = make_video(tmp_path / "small.mp4", width=40, height=30, frames=9)
    large = make_video(tmp_path / "large.mp4", width=48, height=32, frames=9)

    assert bench("--engine", engine, *QUICK, small).exit_code == 0
    refused = bench("--engine", engine, *QUICK, small, large)
    assert refused.exit_code == 2
    assert "give videos of one size" in refused.stderr
