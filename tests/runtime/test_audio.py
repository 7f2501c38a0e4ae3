"""Sound from all kinds of files, window by window and through a tiny engine."""

from __future__ import annotations

import resource
import sys
import wave
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from make_sound import make_sound, tone
from make_video import make_video
from run_kit import failures, vfx_run
from tiny import tiny_engine
from tiny_sound import RATE, SAMPLES, sound_engine, sound_features, sound_spec
from tolerances import RESAMPLED_TONE, TIMESTAMP_MS
from vfx_engines.errors import UsageError, VideoError
from vfx_runtime import Features, extract
from vfx_runtime.audio import SoundWindow, sound_windows
from vfx_runtime.audio_resampler import Resampler


@pytest.fixture
def engine(tmp_path: Path) -> Path:
    return sound_engine(tmp_path / "sound.onnx")


def read(path: Path, **sampling: object) -> list[SoundWindow]:
    spec = sound_spec(**sampling)
    return list(sound_windows(path, spec, spec.sampling))


def apart(windows: list[SoundWindow], layout: str) -> float:
    """Relative distance (L2) of windows from the tone that was encoded, at the windows' own times."""
    got = np.stack([window.samples for window in windows])
    starts = np.array([window.timestamps_ms[0] for window in windows])
    want = tone(starts[:, None] / 1000 + np.arange(SAMPLES) / RATE, layout)
    return float(np.linalg.norm(got - want) / np.linalg.norm(want))


# file, encoder, rate, layout, sample format, largest relative distance from the tone
KINDS: list[tuple[str, str, int, str, str | None, float]] = [
    ("a.wav", "pcm_s16le", 16_000, "mono", None, RESAMPLED_TONE),
    ("a.wav", "pcm_s16le", 11_025, "mono", None, RESAMPLED_TONE),
    ("a.wav", "pcm_s16le", 8_000, "mono", None, RESAMPLED_TONE),
    ("a.wav", "pcm_s24le", 44_100, "5.1", None, RESAMPLED_TONE),
    ("a.wav", "pcm_s24le", 48_000, "7.1", None, RESAMPLED_TONE),
    ("a.wav", "pcm_f32le", 96_000, "stereo", None, RESAMPLED_TONE),
    ("a.wav", "pcm_u8", 8_000, "stereo", None, 1e-2),  # 8 bits
    ("a.aiff", "pcm_s16be", 44_100, "stereo", None, RESAMPLED_TONE),
    ("a.mov", "pcm_s16le", 48_000, "stereo", None, RESAMPLED_TONE),
    ("a.flac", "flac", 48_000, "stereo", None, RESAMPLED_TONE),
    ("a.flac", "flac", 44_100, "mono", "s32", RESAMPLED_TONE),
    ("a.mka", "flac", 8_000, "5.1", None, RESAMPLED_TONE),
    ("a.flac", "flac", 48_000, "7.1", "s32", RESAMPLED_TONE),  # 24 bits
    ("a.mp4", "aac", 44_100, "stereo", None, 2e-3),
    ("a.m4a", "aac", 8_000, "mono", None, 2e-3),
    ("a.mp4", "aac", 48_000, "5.1", None, 0.15),  # the encoder filters the low-frequency channel
    ("a.mp4", "aac", 48_000, "7.1", None, 0.15),  # as above
    ("a.mkv", "ac3", 48_000, "5.1", None, 2e-2),
    ("a.mp3", "libmp3lame", 44_100, "stereo", None, 0.06),  # LAME makes the tone 5 % softer
    ("a.mp3", "libmp3lame", 8_000, "mono", None, 0.06),
    ("a.mp4", "libmp3lame", 48_000, "stereo", None, 0.06),
    ("a.opus", "libopus", 48_000, "stereo", None, 2e-2),
    ("a.webm", "libopus", 48_000, "5.1", None, 2e-2),
]


@pytest.mark.parametrize(("name", "encoder", "rate", "layout", "kind", "distance"), KINDS)
def test_a_tone_comes_back_in_time_from_any_file(
    tmp_path: Path, name: str, encoder: str, rate: int, layout: str, kind: str | None, distance: float
) -> None:
    """Shifted by one sample, a tone would differ by 17 %."""
    path = make_sound(tmp_path / name, encoder, rate=rate, layout=layout, sample_format=kind)
    windows = read(path)
    assert len(windows) in (20, 21)  # some containers keep the encoder's padding at the end
    assert apart(windows, layout) < distance
    for number, window in enumerate(windows):
        np.testing.assert_allclose(
            window.timestamps_ms, (number * 100, number * 100 + 100), atol=TIMESTAMP_MS
        )
        first, last = number * rate / 10, (number + 1) * rate / 10
        assert window.frame_range == (int(first), int(np.ceil(last)))


def test_rows_of_a_file_are_those_of_its_samples(tmp_path: Path, engine: Path) -> None:
    path = make_sound(tmp_path / "tone.flac", "flac", rate=44_100, layout="stereo")
    got = extract(path, engine)
    assert got.fps == RATE
    want = sound_features(tone(np.arange(2 * RATE) / RATE, "stereo").reshape(-1, SAMPLES))
    np.testing.assert_allclose(got.arrays["loudness"], want, atol=1e-5)
    np.testing.assert_array_equal(got.frame_range[:2], [[0, 4410], [4410, 8820]])


def test_a_step_overlaps_windows(tmp_path: Path, engine: Path) -> None:
    path = make_sound(tmp_path / "tone.wav", rate=48_000)
    whole, half = extract(path, engine), extract(path, engine, step=SAMPLES // 2)
    assert len(half.timestamps_ms) == 39
    np.testing.assert_array_equal(half.arrays["loudness"][::2], whole.arrays["loudness"])
    np.testing.assert_allclose(half.timestamps_ms[1], (50, 150), atol=TIMESTAMP_MS)


@pytest.mark.parametrize(("tail", "last"), [("zeros", 0.0), ("repeat", 1.0)])
def test_tails_are_filled(tmp_path: Path, engine: Path, tail: str, last: float) -> None:
    constant(tmp_path / "short.wav", 2000)
    got = extract(tmp_path / "short.wav", engine, tail=tail)  # type: ignore[arg-type]
    assert got.timestamps_ms.tolist() == [[0, 100], [100, 125]]
    assert got.frame_range.tolist() == [[0, 1600], [1600, 2000]]
    np.testing.assert_allclose(got.arrays["loudness"][1][2], last * 0.5, atol=1e-4)


def test_centred_windows_and_strides_are_those_of_pictures(tmp_path: Path) -> None:
    constant(tmp_path / "short.wav", 4000)
    centred = read(tmp_path / "short.wav", anchor="centre", edges="zeros", step=2000)
    assert [window.timestamps_ms for window in centred] == [(0, 50), (75, 175)]
    np.testing.assert_allclose(centred[0].samples[[0, 799, 800, 1599]], [0, 0, 0.5, 0.5])
    strided = read(tmp_path / "short.wav", stride=2)
    assert [window.frame_range for window in strided] == [(0, 3199)]
    assert strided[0].samples.shape == (1600,)


def test_sound_that_begins_after_the_pictures_says_so(tmp_path: Path) -> None:
    path = make_sound(tmp_path / "late.mkv", "flac", rate=44_100, delay=0.5, video=True)
    windows = read(path)
    np.testing.assert_allclose(windows[0].timestamps_ms, (500, 600), atol=1)  # Matroska keeps milliseconds
    assert windows[0].frame_range == (0, 4410)


def test_a_gap_is_in_the_times_and_not_in_the_samples(tmp_path: Path) -> None:
    path = make_sound(tmp_path / "gap.mkv", "pcm_s16le", rate=16_000, gap=(1.0, 0.5))
    windows = read(path)
    assert len(windows) == 20
    starts = [window.timestamps_ms[0] for window in windows]
    np.testing.assert_allclose(starts[:10], np.arange(10) * 100, atol=1)
    np.testing.assert_allclose(starts[11:], np.arange(11, 20) * 100 + 500, atol=1)
    assert windows[-1].frame_range == (19 * 1600, 20 * 1600)


def test_rows_line_up_with_those_of_the_pictures(tmp_path: Path, engine: Path) -> None:
    """Four frames at 40 fps take as long as a window of 0.1 s of sound from the same file."""
    path = make_video(tmp_path / "both.mp4", fps=40, frames=40, audio=True)
    pictures = extract(path, tiny_engine(tmp_path / "tiny.onnx"))
    sound = extract(path, engine)
    np.testing.assert_allclose(sound.timestamps_ms[:10], pictures.timestamps_ms, atol=TIMESTAMP_MS)


@pytest.mark.parametrize("rate", [8_000, 11_025, 22_050, 44_100, 48_000])
def test_resampling_by_portions_is_resampling_at_once(rate: int) -> None:
    rng = np.random.default_rng(rate)
    samples = rng.standard_normal(3 * rate + 17, np.float32)

    def run(size: int) -> NDArray[np.float32]:
        resampler = Resampler(rate, RATE)
        parts = [resampler.push(samples[i : i + size]) for i in range(0, len(samples), size)]
        return np.concatenate([*parts, resampler.finish()])

    whole = run(len(samples))
    assert len(whole) == len(samples) * RATE // rate
    np.testing.assert_allclose(run(1024), whole, atol=1e-5)
    np.testing.assert_allclose(run(7919), whole, atol=1e-5)


def test_frequencies_that_do_not_fit_are_gone() -> None:
    at = np.arange(96_000) / 48_000
    for hertz, remains in ((1000, 1.0), (6500, 1.0), (9000, 0.0), (15_000, 0.0)):
        resampler = Resampler(48_000, RATE)
        wave_ = np.sin(2 * np.pi * hertz * at).astype(np.float32)
        out = np.concatenate([resampler.push(wave_), resampler.finish()])[1000:-1000]
        assert np.sqrt(2) * out.std() == pytest.approx(remains, abs=1e-3)


def test_memory_does_not_grow_with_the_length(tmp_path: Path) -> None:
    path = tmp_path / "long.wav"
    constant(path, 48_000 * 1200, rate=48_000)
    count, before = 0, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    spec = sound_spec()
    for _ in sound_windows(path, spec, spec.sampling):
        count += 1
    assert count == 12_000
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown * (1 if sys.platform == "darwin" else 1024) < 60 * 2**20  # the whole sound would take 230 MB


def constant(path: Path, count: int, rate: int = RATE) -> Path:
    with wave.open(str(path), "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(rate)
        second = np.full(rate, 16384, np.int16).tobytes()
        for first in range(0, count, rate):
            out.writeframes(second[: 2 * min(rate, count - first)])
    return path


def cut(path: Path, share: float = 0.5) -> Path:
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    return path


def scratched(path: Path) -> Path:
    data = bytearray(path.read_bytes())
    middle = len(data) * 2 // 3
    data[middle : middle + 400] = np.random.default_rng(1).bytes(400)
    path.write_bytes(data)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


BAD: dict[str, tuple[Callable[[Path], Path], str]] = {
    "missing": (lambda d: d / "none.wav", "No such file"),
    "empty": (lambda d: written(d / "a.wav", b""), "is empty"),
    "a text": (lambda d: written(d / "a.wav", b"not sound\n" * 100), "not a sound or video file"),
    "a picture": (lambda d: written(d / "a.mp3", b"\x89PNG\r\n\x1a\n" + bytes(500)), "vfx reads"),
    "no sound": (lambda d: make_video(d / "a.mp4"), "no audio stream, found video"),
    "a GIF": (lambda d: make_video(d / "a.gif", codec="gif"), "no audio stream, found video"),
    "no samples": (lambda d: constant(d / "a.wav", 0), "is empty"),
    "one sample": (
        lambda d: constant(d / "a.wav", 1),
        "0.000 s of sound, a window of tiny_sound needs 0.100",
    ),
    "too short": (lambda d: constant(d / "a.wav", 1599), "use --tail zeros"),
    "cut WAV": (lambda d: cut(make_sound(d / "a.wav")), "truncated"),
    "cut AIFF": (lambda d: cut(make_sound(d / "a.aiff", "pcm_s16be")), "truncated"),
    "cut FLAC": (lambda d: cut(make_sound(d / "a.flac", "flac")), "damaged"),
    "cut MP3": (lambda d: cut(make_sound(d / "a.mp3", "libmp3lame")), "truncated"),
    "cut MP4": (lambda d: cut(make_sound(d / "a.mp4", "aac")), "without a readable index"),
    "cut Matroska": (lambda d: cut(make_sound(d / "a.mkv", "aac")), "truncated"),
    "cut AAC": (lambda d: cut(make_sound(d / "a.aac", "aac")), "damaged"),
    "scratched FLAC": (lambda d: scratched(make_sound(d / "a.flac", "flac")), "damaged"),
    "scratched AAC": (
        lambda d: scratched(make_sound(d / "a.m4a", "aac", rate=44_100)),
        "damaged at or after",
    ),
    "scratched AC-3": (
        lambda d: scratched(make_sound(d / "a.mkv", "ac3", rate=48_000)),
        "damaged at or after",
    ),
    "not a number": (
        lambda d: written(
            d / "a.wav",
            make_sound(d / "b.wav", "pcm_f32le").read_bytes()[:-4000] + b"\xff" * 4000,
        ),
        "not finite",
    ),
    "another rate within": (
        lambda d: written(
            d / "a.aac",
            make_sound(d / "b.aac", "aac", rate=44_100).read_bytes()
            + make_sound(d / "c.aac", "aac", rate=22_050).read_bytes(),
        ),
        "sample rate changes",
    ),
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_sound_ends_in_one_line(tmp_path: Path, engine: Path, kind: str) -> None:
    make, expected = BAD[kind]
    with pytest.raises(VideoError) as caught:
        extract(make(tmp_path), engine)
    assert expected in str(caught.value)
    assert str(caught.value).isprintable()


def test_bad_sound_ends_its_own_job_alone(tmp_path: Path, engine: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    make_sound(folder / "good.mp3", "libmp3lame")
    make_sound(folder / "film.mp4", "aac", video=True)
    make_video(folder / "silent.mp4")
    cut(make_sound(folder / "cut.wav"))
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", folder)
    assert result.exit_code == 1
    assert set(failures(tmp_path / "out")) == {"silent", "cut"}
    assert {path.name for path in (tmp_path / "out").glob("*.npz")} == {"good.npz", "film.npz"}
    again = vfx_run("--engine", engine, "--output", tmp_path / "out", folder)
    assert "2 were done before" in again.stderr


def test_folders_are_searched_for_sound_only_where_the_engine_takes_it(tmp_path: Path, engine: Path) -> None:
    folder = tmp_path / "clips"
    folder.mkdir()
    make_sound(folder / "a.flac", "flac")
    make_video(folder / "b.mp4", audio=True, frames=25)
    said = vfx_run("--engine", engine, "--dry-run", folder)
    assert "windows of 1600 samples every 1600" in said.stderr
    assert [line.split("/")[-1] for line in said.stdout.splitlines()] == ["a", "b"]
    names = [done.name for done in extract([folder], engine)]
    assert sorted(names) == ["a", "b"]
    names = [done.name for done in extract([folder], tiny_engine(tmp_path / "tiny.onnx"))]
    assert names == ["b"]


def test_another_rate_is_refused(tmp_path: Path, engine: Path) -> None:
    path = constant(tmp_path / "a.wav", 3200)
    with pytest.raises(UsageError, match="takes sound at 16000 Hz"):
        extract(path, engine, fps=25)
    for option, value in (("fps", "source"), ("target-fps", 30), ("views", 2), ("total", 3)):
        result = vfx_run("--engine", engine, "--output", tmp_path / "out", f"--{option}", value, path)
        assert result.exit_code == 2, result.output
        assert (
            f"takes sound at 16000 Hz, to which every file is resampled: leave --{option} out"
            in result.stderr
        )
    rateless = sound_engine(tmp_path / "rateless.onnx", fps=None)
    with pytest.raises(UsageError, match="no sample rate"):
        extract(path, rateless)


def test_npy_has_the_names_of_video_features(tmp_path: Path, engine: Path) -> None:
    path = constant(tmp_path / "a.wav", 3200)
    result = vfx_run("--engine", engine, "--output", tmp_path / "out", "--format", "npy", path)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "out" / "a_loudness.npy").exists()
    assert " samples  3200, " in result.stderr


def test_the_result_is_features(tmp_path: Path, engine: Path) -> None:
    assert isinstance(extract(constant(tmp_path / "a.wav", 3200), engine), Features)
