"""The decoder on real files: every kind that must work, and bad ones, each refused with one line."""

from __future__ import annotations

import http.server
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

import parity_kit
from make_video import frame_number, make_video, picture
from vfx_engines.errors import VideoError
from vfx_runtime.decode import Frame
from vfx_runtime.opening import open_video


def read(path: str | Path, threads: int = 1) -> list[tuple[int, Fraction, Fraction, Any]]:
    """All frames as (index, start, end, pixels)."""
    with open_video(path, threads) as video:
        return [(frame.index, frame.start, frame.end, frame.rgb()) for frame in video]


def numbers(path: str | Path, threads: int = 1) -> list[int]:
    """The numbers drawn into the frames; also checks that indices count from 0."""
    frames = read(path, threads)
    assert [index for index, *_ in frames] == list(range(len(frames)))
    return [frame_number(rgb) for *_, rgb in frames]


def refusal(path: str | Path) -> str:
    """The one line that says why the video cannot be used."""
    with pytest.raises(VideoError) as caught:
        read(path)
    message = str(caught.value)
    assert "\n" not in message
    return message


def cut(path: Path, share: float) -> Path:
    """Truncate the file to this share (0 to 1) of its length."""
    os.truncate(path, int(path.stat().st_size * share))
    return path


def packets(path: Path) -> list[tuple[int, int]]:
    """Position and size of each video packet in the file."""
    with av.open(str(path)) as container:
        demuxed = container.demux(video=0)
        return [(packet.pos, packet.size) for packet in demuxed if packet.pos is not None]


def damage(path: Path, position: int, data: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)
    return path


# ---- what must work


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("h264.mp4", {}),
        ("b_frames.mp4", {"options": {"bf": "3"}, "frames": 30}),
        ("h264.mkv", {}),
        ("h264.ts", {}),
        ("h264.264", {}),
        ("hevc.mp4", {"codec": "hevc"}),
        ("hevc_10_bit.mp4", {"codec": "hevc", "pix_fmt": "yuv420p10le"}),
        ("vp9.webm", {"codec": "vp9"}),
        ("av1.mp4", {"codec": "av1"}),
        ("av1_10_bit.mkv", {"codec": "av1", "pix_fmt": "yuv420p10le"}),
        ("mpeg4.avi", {"codec": "mpeg4"}),
        ("mpeg4.mp4", {"codec": "mpeg4"}),
        ("mpeg2.mpg", {"codec": "mpeg2"}),
        ("gif.gif", {"codec": "gif"}),
        ("ffv1.mkv", {"codec": "ffv1"}),
        ("mjpeg.avi", {"codec": "mjpeg"}),
        ("odd.mp4", {"codec": "vp9", "width": 321, "height": 241}),
        ("odd_444.mp4", {"pix_fmt": "yuv444p", "width": 321, "height": 241}),
        ("portrait.mp4", {"width": 48, "height": 80}),
        ("one_frame.mp4", {"frames": 1}),
        ("with_sound.mp4", {"audio": True}),
        ("fragmented.mp4", {"container_options": {"movflags": "frag_keyframe+empty_moov"}}),
        ("2997.mp4", {"fps": Fraction(30000, 1001)}),
    ],
)
def test_every_kind_of_video_gives_its_frames_in_order_with_their_times(
    tmp_path: Path, name: str, options: dict[str, Any]
) -> None:
    path = make_video(tmp_path / name, **options)
    count, fps = options.get("frames", 10), Fraction(options.get("fps", 25))
    width, height = options.get("width", 64), options.get("height", 48)
    frames = read(path)
    assert [frame_number(rgb) for *_, rgb in frames] == list(range(count))
    assert all(rgb.dtype == np.uint8 and rgb.shape == (height, width, 3) for *_, rgb in frames)
    difference = np.abs(frames[0][3].astype(int) - picture(0, width, height))
    assert difference.mean() < 20  # colours survive, even with the 256 colours of a GIF
    tick = 0 if path.suffix in (".mp4", ".avi", ".gif") else Fraction(1, 1000)
    for index, start, end, _ in frames:
        assert abs(start - index / fps) <= tick
        assert abs(end - (index + 1) / fps) <= tick
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (width, height)
        assert video.info.fps == pytest.approx(float(fps))
        assert video.info.rotation == 0


def test_lossless_pixels_come_back_exactly(tmp_path: Path) -> None:
    path = make_video(tmp_path / "rgb.mp4", codec="h264_rgb", width=66, height=50)
    for index, *_, rgb in read(path):
        np.testing.assert_array_equal(rgb, picture(index, 66, 50))


def test_a_variable_frame_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [Fraction(number * number, 50) for number in range(8)]
    frames = read(make_video(tmp_path / "vfr.mp4", frames=8, times=times))
    assert [start for _, start, *_ in frames] == times
    assert [end for _, _, end, _ in frames[:-1]] == times[1:]
    assert frames[-1][2] > times[-1]


def test_times_count_from_the_start_of_the_file(tmp_path: Path) -> None:
    """The clock of an MPEG transport stream starts anywhere, but the ffmpeg tool still starts at zero."""
    late = [Fraction(7) + Fraction(number, 25) for number in range(5)]
    frames = read(make_video(tmp_path / "late.ts", frames=5, times=late))
    assert [start for _, start, *_ in frames] == [Fraction(number, 25) for number in range(5)]


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
@pytest.mark.parametrize("mirrored", [False, True])
def test_rotation_metadata_turns_the_picture_upright(tmp_path: Path, rotation: int, mirrored: bool) -> None:
    path = make_video(
        tmp_path / "turned.mp4", codec="h264_rgb", rotation=rotation, mirrored=mirrored, frames=3
    )
    for index, *_, rgb in read(path):
        np.testing.assert_array_equal(rgb, picture(index))
        assert rgb.strides[1:] == (3, 1)
    with open_video(path) as video:
        assert (video.info.width, video.info.height) == (64, 48)
        if not mirrored:
            assert video.info.rotation == rotation


@pytest.mark.parametrize(("matrix", "range_"), [(1, 1), (5, 1), (5, 2)])
def test_colour_follows_the_matrix_and_range_of_the_stream(tmp_path: Path, matrix: int, range_: int) -> None:
    path = make_video(
        tmp_path / "colour.mp4", colour=(matrix, range_), pix_fmt="yuv444p", options={"qp": "1"}
    )
    rgb = read(path)[0][3].astype(int)
    assert np.abs(rgb - picture(0)).max() <= 6


def test_a_size_that_changes_on_the_way_gives_each_frame_its_own(tmp_path: Path) -> None:
    small, large = make_video(tmp_path / "a.264"), make_video(tmp_path / "b.264", width=96, height=64)
    joined = tmp_path / "joined.264"
    joined.write_bytes(small.read_bytes() + large.read_bytes())
    frames = read(joined)
    assert [rgb.shape for *_, rgb in frames] == [(48, 64, 3)] * 10 + [(64, 96, 3)] * 10
    assert [frame_number(rgb) for *_, rgb in frames] == [*range(10), *range(10)]


def test_recordings_joined_end_to_end_go_on_in_time(tmp_path: Path) -> None:
    part = make_video(tmp_path / "part.ts").read_bytes()
    joined = tmp_path / "joined.ts"
    joined.write_bytes(part + part)
    frames = read(joined)
    starts = [start for _, start, *_ in frames]
    assert [frame_number(rgb) for *_, rgb in frames] == [*range(10), *range(10)]
    assert starts == sorted(set(starts))


@pytest.mark.parametrize("codec", ["h264", "hevc", "vp9", "av1", "mpeg4"])
def test_threads_change_nothing(tmp_path: Path, codec: Any) -> None:
    path = make_video(tmp_path / "video.mkv", codec=codec, frames=30)
    for one, two in zip(read(path), read(path, threads=2), strict=True):
        assert one[:3] == two[:3]
        np.testing.assert_array_equal(one[3], two[3])


def test_pixels_outlive_the_frame_and_the_decoder(tmp_path: Path) -> None:
    kept = [rgb for *_, rgb in read(make_video(tmp_path / "video.mp4", frames=40))]
    assert [frame_number(rgb) for rgb in kept] == list(range(40))


@pytest.mark.parametrize(
    "name",
    [
        "two words.mp4",
        'it\'s "quoted".mp4',
        "new\nline.mp4",
        "кино 映画 🎬.mp4",
        "-i.mp4",
        "100%d.mp4",
        "concat:a.mp4|b.mp4",
        "http:video.mp4",
        os.fsdecode(b"not utf-8 \xff.mp4"),
    ],
)
def test_any_file_name_is_a_file_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    make_video(tmp_path / "video.mp4").rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert numbers(name) == list(range(10))
    cut(Path(name), 0.5)
    assert refusal(name).isprintable()


# ---- the public reference


def test_pixels_and_times_are_those_of_opencv_and_video_features() -> None:
    golden = parity_kit.e2e("frames")
    with open_video(parity_kit.video("v_GGSY1Qvo990.mp4")) as video:
        info = video.info
        seen = [(float(frame.start * 1000), frame.rgb().mean((0, 1))) for frame in video]
    assert (info.width, info.height, info.frames) == (320, 240, 355)
    assert info.fps == float(golden["cv2_fps"])
    np.testing.assert_allclose(
        [time for time, _ in seen], golden["cv2_pos_msec_after_read"], rtol=0, atol=1e-6
    )
    np.testing.assert_allclose([mean for _, mean in seen], golden["cv2_mean_rgb"], rtol=0, atol=1e-4)


def test_the_other_real_video_decodes_to_its_end() -> None:
    assert len(read(parity_kit.video("v_ZNVhz7ctTq0.mp4"))) == 420


# ---- skipping


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [
        ("h264.mp4", "h264", {"bf": "2"}),
        ("open_gop.mkv", "h264", {"bf": "2", "x264-params": "open-gop=1"}),
        ("hevc.mp4", "hevc", {"bf": "2"}),
        ("vp9.webm", "vp9", {}),
        ("av1.mp4", "av1", {}),
        ("mpeg4.avi", "mpeg4", {}),
        ("mpeg2.ts", "mpeg2", {}),
        ("h264.ts", "h264", {}),
        ("gif.gif", "gif", {}),
    ],
)
def test_after_a_skip_frames_are_the_same(
    tmp_path: Path, name: str, codec: Any, options: dict[str, str]
) -> None:
    path = make_video(tmp_path / name, codec=codec, frames=90, gop=12, options=options)
    everything = read(path)
    with open_video(path) as video:
        for wanted in (5, 40, 41, 77):
            video.skip_to(wanted)
            for frame in video:
                index, start, end, rgb = everything[frame.index]
                assert (frame.index, frame.start, frame.end) == (index, start, end)
                np.testing.assert_array_equal(frame.rgb(), rgb)
                if frame.index >= wanted:
                    break
            assert frame.index == wanted
        assert [frame.index for frame in video] == list(range(78, 90))


def test_a_skip_leaves_frames_undecoded(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", frames=90, gop=12)
    with open_video(path) as video:
        video.skip_to(50)
        given = [frame.index for frame in video]
    assert given == list(range(48, 90))


def test_a_skip_past_the_end_or_back_changes_nothing(tmp_path: Path) -> None:
    with open_video(make_video(tmp_path / "video.mp4", frames=30)) as video:
        video.skip_to(1000)
        frames: Iterator[Frame] = iter(video)
        assert [next(frames).index for _ in range(20)] == list(range(20))
        video.skip_to(3)
        assert [frame.index for frame in frames] == list(range(20, 30))


# ---- what must be refused


def test_paths_that_hold_no_file(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "missing.mp4")
    assert "is a folder" in refusal(tmp_path)
    (tmp_path / "empty.mp4").touch()
    assert "empty (0 bytes)" in refusal(tmp_path / "empty.mp4")
    assert "null" in refusal("nul\0byte.mp4")


def test_a_file_that_goes_away_while_it_is_read(tmp_path: Path) -> None:
    path = make_video(tmp_path / "gone.mp4")
    with open_video(path) as video:
        next(video)
        path.unlink()
        with pytest.raises(VideoError, match=r"gone\.mp4: changed while it was read"):
            list(video)


def test_a_named_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.mp4")
    assert "not a regular file" in refusal(tmp_path / "pipe.mp4")
    assert "not a regular file" in refusal("/dev/zero")


def picture_file(path: Path) -> None:
    with av.open(str(path), "w", format="image2", options={"update": "1"}) as out:
        stream = out.add_stream("mjpeg", rate=1)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuvj420p"
        out.mux(stream.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        out.mux(stream.encode())


@pytest.mark.parametrize(
    "write",
    [
        lambda path: path.write_text("A film is not made of words.\n" * 100),
        lambda path: path.write_bytes(random.Random(1).randbytes(100_000)),
        lambda path: path.write_bytes(bytes(100_000)),
        picture_file,
    ],
    ids=["text", "random", "zeros", "jpeg"],
)
def test_what_is_no_video(tmp_path: Path, write: Callable[[Path], None]) -> None:
    path = tmp_path / "video.mp4"
    write(path)
    assert "not a video file" in refusal(path)


def test_sound_without_a_picture(tmp_path: Path) -> None:
    assert "no video stream, found audio" in refusal(make_video(tmp_path / "sound.mp4", frames=0, audio=True))


def test_the_cover_of_an_audio_file_is_no_video(tmp_path: Path) -> None:
    path = tmp_path / "song.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        sound, cover = out.add_stream("aac", rate=44100), out.add_stream("mjpeg", rate=1)
        assert isinstance(sound, av.AudioStream)
        assert isinstance(cover, av.VideoStream)
        cover.width, cover.height, cover.pix_fmt = 64, 48, "yuvj420p"
        cover.disposition = av.stream.Disposition.attached_pic
        out.mux(cover.encode(av.VideoFrame.from_ndarray(picture(0), format="rgb24")))
        out.mux(cover.encode())
        silence = np.zeros((2, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="stereo")
        frame.sample_rate, frame.pts = 44100, 0
        out.mux(sound.encode(frame))
        out.mux(sound.encode())
    with av.open(str(path)) as made:
        assert len(made.streams.video) == 1
    assert "no video stream" in refusal(path)


def test_a_header_that_asks_for_too_large_a_picture(tmp_path: Path) -> None:
    path = make_video(tmp_path / "huge.gif", codec="gif")
    damage(path, 6, b"\xff\xff\xff\xff")
    refusal(path)
    path = make_video(tmp_path / "huge.avi", codec="mjpeg")
    data = path.read_bytes()
    at = data.index(b"\xff\xc0") + 5
    damage(path, at, b"\xff\xff\xff\xff")
    refusal(path)


PLAYLISTS = {
    "hls.mp4": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{target}\n#EXT-X-ENDLIST\n",
    "concat.mp4": "ffconcat version 1.0\nfile '{target}'\n",
    "sdp.mp4": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n"
    "a=rtpmap:96 H264/90000\n",
    "dash.mp4": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static">'
    '<Period><AdaptationSet mimeType="video/mp4"><Representation id="1"><BaseURL>{target}</BaseURL>'
    "</Representation></AdaptationSet></Period></MPD>",
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_no_other_file_is_reached_through_a_file(tmp_path: Path, name: str) -> None:
    target = make_video(tmp_path / "private.ts")
    (tmp_path / name).write_text(PLAYLISTS[name].format(target=target.name))
    assert "not a video file" in refusal(tmp_path / name)


def test_no_server_is_reached_through_a_path_or_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

    monkeypatch.chdir(tmp_path)
    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/video.mp4"
        for name, text in PLAYLISTS.items():
            (tmp_path / name).write_text(text.format(target=url))
        for path in (url, f"cache:{url}", f"async:{url}", *PLAYLISTS):
            refusal(path)
        server.shutdown()
    assert not asked


# ---- damage


@pytest.mark.parametrize(
    ("name", "options", "share", "words"),
    [
        ("index_last.mp4", {}, 0.7, "without a readable index"),
        (
            "index_first.mp4",
            {"container_options": {"movflags": "faststart"}},
            0.7,
            "truncated: it announces",
        ),
        ("one_byte_short.mkv", {}, 0.9999, "truncated: it announces"),
        ("matroska.mkv", {}, 0.6, "truncated: it announces"),
        ("webm.webm", {"codec": "vp9"}, 0.6, "truncated: it announces"),
        ("avi.avi", {"codec": "mpeg4"}, 0.6, "truncated: it announces"),
        (
            "fragments.mp4",
            {"container_options": {"movflags": "frag_keyframe+empty_moov"}},
            0.55,
            "truncated: it announces",
        ),
    ],
)
def test_a_truncated_file(
    tmp_path: Path, name: str, options: dict[str, Any], share: float, words: str
) -> None:
    path = make_video(tmp_path / name, frames=40, width=160, height=120, **options)
    assert words in refusal(cut(path, share))


@pytest.mark.parametrize("codec", ["h264", "hevc", "mpeg4", "av1"])
@pytest.mark.parametrize("threads", [1, 2])
def test_damaged_packets_in_the_middle_end_the_video(tmp_path: Path, codec: Any, threads: int) -> None:
    path = make_video(tmp_path / "video.mp4", codec=codec, frames=40, gop=40)
    position, size = packets(path)[20]
    damage(path, position, bytes(size))
    with pytest.raises(VideoError, match=r"video\.mp4: damaged at or after frame \d+ \(\d\.\d\d s\): "):
        read(path, threads)


def test_damage_in_the_last_packet_is_not_lost_between_threads(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", frames=20)
    position, size = packets(path)[-1]
    damage(path, position, bytes(size))
    for threads in (1, 2):
        with pytest.raises(VideoError, match="damaged"):
            read(path, threads)


def test_trailing_garbage_is_harmless(tmp_path: Path) -> None:
    for name in ("video.mp4", "video.mkv"):
        path = make_video(tmp_path / name)
        path.write_bytes(path.read_bytes() + random.Random(5).randbytes(5000))
        assert numbers(path) == list(range(10))


def test_after_damage_no_more_frames_follow(tmp_path: Path) -> None:
    path = make_video(tmp_path / "video.mp4", frames=40, gop=40)
    position, size = packets(path)[20]
    damage(path, position + 4, random.Random(4).randbytes(size - 4))
    with open_video(path) as video:
        with pytest.raises(VideoError):
            for _ in video:
                pass
        assert list(video) == []


FUZZ = """
import random, sys
from vfx_engines.errors import VideoError
from vfx_runtime.opening import open_video

source, scratch, seeds = sys.argv[1], sys.argv[2], range(int(sys.argv[3]), int(sys.argv[4]))
whole = open(source, "rb").read()
done = refused = 0
for seed in seeds:
    rng, data = random.Random(seed), bytearray(whole)
    for _ in range(rng.choice((1, 1, 3, 10))):
        length = rng.choice((1, 1, 4, 30, 300))
        at = rng.randrange(max(1, len(data) - length))
        kind = rng.randrange(4)
        if kind == 0:
            del data[at : at + length]
        elif kind == 1:
            data[at:at] = rng.randbytes(length)
        else:
            data[at : at + length] = rng.randbytes(length) if kind == 2 else bytes(length)
    if rng.random() < 0.1:
        del data[rng.randrange(len(data)) :]
    with open(scratch, "wb") as file:
        file.write(data)
    try:
        with open_video(scratch, 1 + seed % 2) as video:
            for frame in video:
                assert frame.end > frame.start
                rgb = frame.rgb()
                if frame.index == 3 and seed % 3 == 0:
                    video.skip_to(15)
        done += 1
    except VideoError as error:
        assert str(error).isprintable(), error
        refused += 1
print(done, refused)
"""


def test_random_damage_gives_frames_or_one_error(tmp_path: Path) -> None:
    source = make_video(tmp_path / "source.mp4", frames=20, gop=5, audio=True)
    run = subprocess.run(
        [sys.executable, "-c", FUZZ, str(source), str(tmp_path / "damaged.mp4"), "0", "60"],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")
    done, refused = map(int, run.stdout.split())
    assert done + refused == 60
    assert refused > 20
