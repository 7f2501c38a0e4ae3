"""Folders of frame images as videos: which files, their order, their pixels, and what may be wrong."""

from __future__ import annotations

import io
import itertools
import pickle
import shutil
import zlib
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageOps

from make_video import frame_number, make_video, picture
from run_kit import failures, files_in, vfx_run
from tiny import tiny_engine
from tiny_flow import tiny_flow_engine
from vfx_engines.errors import UsageError, VideoError
from vfx_runtime import Features, extract, read_features
from vfx_runtime import image_folder as image_folder_module
from vfx_runtime.image_names import Images
from vfx_runtime.inputs import find_videos
from vfx_runtime.opening import open_video

Pixels = NDArray[np.uint8]


def make_images(
    folder: Path,
    numbers: range = range(10),
    pattern: str = "frame_{:06d}.png",
    size: tuple[int, int] = (64, 48),
    **options: Any,
) -> Path:
    """Write frames, each showing its number, into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        Image.fromarray(picture(number, *size)).save(folder / pattern.format(number), **options)
    return folder


def numbers(folder: Path, pattern: str, fps: float = 25.0) -> list[int]:
    with open_video(folder, images=Images(pattern, fps)) as decoder:
        return [frame_number(frame.rgb()) for frame in decoder]


def refusal(folder: Path, pattern: str = "*") -> str:
    with pytest.raises(VideoError) as caught, open_video(folder, images=Images(pattern)) as decoder:
        [frame.rgb() for frame in decoder]
    text = str(caught.value)
    assert text.isprintable()
    assert folder.name in text
    return text


# ---- names


@pytest.mark.parametrize(
    ("pattern", "fits", "others"),
    [
        ("frame_%06d.jpg", ["frame_000000.jpg", "frame_1000000.jpg"], ["frame_1.jpg", "frame_0000001.jpg"]),
        ("%d.png", ["0.png", "12.png"], ["01.png", "-1.png", "+1.png", "1_0.png", "1.PNG", ".png", "٣.png"]),
        ("img_{:05d}.jpg", ["img_00007.jpg"], ["img_7.jpg", "img_00007.jpg.part", "ximg_00007.jpg"]),
        ("frame_{:010d}.jpg", ["frame_0000000031.jpg"], ["frame_000031.jpg"]),
        ("{}.png", ["3.png"], ["03.png"]),
        ("{0:03}_{{x}}.png", ["003_{x}.png"], ["003_x.png"]),
        ("100%%_%02i.png", ["100%_07.png"], ["100%%_07.png"]),
        ("a[1]%d.png", ["a[1]2.png"], ["a12.png"]),
        ("*.png", ["x.png", "a b.png"], ["x.PNG", ".x.png", "x.png~"]),
        ("f?[0-9].png", ["fa1.png"], ["f1.png", "fab.png"]),
    ],
)
def test_which_names_fit(pattern: str, fits: list[str], others: list[str]) -> None:
    images = Images(pattern)
    assert [name for name in fits if not images.fits(name)] == []
    assert [name for name in others if images.fits(name)] == []


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("frame.png", "expected a number"),
        ("", "expected a number"),
        ("%6d.png", "expected a number"),
        ("%s.png", "expected a number"),
        ("%0500d.png", "expected a number"),
        ("%d_%d.png", "expected one number"),
        ("{}_%d.png", "expected one number"),
        ("img/%d.png", "without folders"),
        (".%d.png", "hidden"),
    ],
)
def test_no_pattern(pattern: str, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        Images(pattern)
    with pytest.raises(UsageError, match="--images-fps 0: expected"):
        Images("*.png", 0)


@pytest.mark.parametrize(
    ("written", "pattern"),
    [
        ("frame_{:06d}.png", "frame_%06d.png"),
        ("frame_{:010d}.bmp", "frame_{:010d}.bmp"),
        ("{}.png", "%d.png"),
        ("a{}.png", "a*.png"),
        ("{}th.webp", "*"),
    ],
)
def test_frames_come_in_the_order_of_their_numbers(tmp_path: Path, written: str, pattern: str) -> None:
    options = {"lossless": True} if written.endswith("webp") else {}
    folder = make_images(tmp_path / "v", range(7, 23), written, **options)
    (folder / ".hidden.png").write_bytes(b"x")
    (folder / "a1_sub.png").mkdir()
    assert numbers(folder, pattern) == list(range(7, 23))


def test_what_a_folder_tells(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(1, 11), size=(30, 20))
    with open_video(folder, images=Images("*.png", 29.97)) as decoder:
        info = decoder.info
        frames = list(decoder)
    assert (info.width, info.height, info.frames, info.codec) == (30, 20, 10, "png")
    assert (info.fps, info.on_gpu) == (29.97, False)
    assert [frame.index for frame in frames] == list(range(10))
    assert [frame.start for frame in frames] == [Fraction(i * 100, 2997) for i in range(10)]
    assert all(one.end == other.start for one, other in itertools.pairwise(frames))
    assert frames[-1].end == Fraction(1000, 2997)


def test_skipping_reaches_any_frame(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(20))
    with open_video(folder, images=Images("*.png")) as decoder:
        assert next(decoder).index == 0  # type: ignore[call-overload]
        decoder.skip_to(15)
        decoder.skip_to(3)
        frame = next(iter(decoder))
        assert (frame.index, frame_number(frame.rgb()), frame.start) == (15, 15, Fraction(15, 25))
        decoder.skip_to(99)
        assert [frame.index for frame in decoder] == [19]


# ---- pixels


def saved(image: Image.Image, path: Path, **options: Any) -> Pixels:
    """Save an image into a new folder, and read it with Pillow as RGB."""
    path.parent.mkdir()
    image.save(path, **options)
    with Image.open(path) as read:
        return np.asarray(ImageOps.exif_transpose(read).convert("RGB"))


def read_one(path: Path) -> Pixels:
    with open_video(path.parent, images=Images("*")) as decoder:
        (frame,) = decoder
        image = frame.rgb()
        assert image.shape == (decoder.info.height, decoder.info.width, 3)
        shown_as = frame.picture()
        assert (shown_as.height, shown_as.width) == image.shape[:2]
        return image


def noise(*shape: int) -> Pixels:
    return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


LOSSLESS: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
    "rgb": ("png", Image.fromarray(noise(21, 35, 3)), {}),
    "a single row": ("png", Image.fromarray(noise(1, 35, 3)), {}),
    "one pixel": ("png", Image.fromarray(noise(1, 1, 3)), {}),
    "grey": ("png", Image.fromarray(noise(21, 35)), {}),
    "alpha": ("png", Image.fromarray(noise(21, 35, 4)), {}),
    "grey and alpha": ("png", Image.fromarray(noise(21, 35, 2), "LA"), {}),
    "palette": ("png", Image.fromarray(noise(21, 35, 3)).quantize(17), {}),
    "black and white": ("png", Image.fromarray(noise(21, 35)).convert("1"), {}),
    "bmp": ("bmp", Image.fromarray(noise(21, 35, 3)), {}),
    "grey bmp": ("bmp", Image.fromarray(noise(21, 35)), {}),
    "webp": ("webp", Image.fromarray(noise(21, 35, 3)), {"lossless": True}),
    "webp with alpha": ("webp", Image.fromarray(noise(21, 35, 4)), {"lossless": True, "exact": True}),
}


@pytest.mark.parametrize("name", LOSSLESS)
def test_lossless_images_are_pillows_to_the_bit(tmp_path: Path, name: str) -> None:
    suffix, image, options = LOSSLESS[name]
    path = tmp_path / "v" / f"1.{suffix}"
    wanted = saved(image, path, **options)
    np.testing.assert_array_equal(read_one(path), wanted)


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("options", [{"subsampling": 0}, {"subsampling": 2}, {"progressive": True}])
@pytest.mark.parametrize("size", [(64, 48), (63, 47)])
def test_jpeg(tmp_path: Path, mode: str, options: dict[str, Any], size: tuple[int, int]) -> None:
    path = tmp_path / "v/1.jpg"
    wanted = saved(Image.fromarray(picture(5, *size)).convert(mode), path, quality=95, **options)
    found = read_one(path)
    assert frame_number(found) == 5
    # Pillow's library interpolates subsampled chroma; FFmpeg does not, as in videos.
    difference = np.abs(found.astype(int) - wanted)
    assert difference.mean() < (2.5 if options.get("subsampling") != 0 and mode == "RGB" else 0.6)


@pytest.mark.parametrize(
    ("pix_fmt", "channels"), [("gray16be", 1), ("ya16be", 2), ("rgb48be", 3), ("rgba64be", 4)]
)
def test_of_sixteen_bits_the_upper_eight_count(tmp_path: Path, pix_fmt: str, channels: int) -> None:
    """Like OpenCV and Pillow."""
    high = noise(21, 35, channels)
    values = np.stack([high, noise(21, 35, channels)[::-1]], axis=-1)
    frame = av.VideoFrame(35, 21, pix_fmt)
    line = frame.planes[0].line_size
    stored = np.zeros((21, line), np.uint8)
    stored[:, : 35 * channels * 2] = values.reshape(21, -1)
    frame.planes[0].update(stored.tobytes())
    encoder = av.CodecContext.create("png", "w")
    assert isinstance(encoder, av.VideoCodecContext)
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 35, 21, pix_fmt, Fraction(1, 25)
    (packet,) = encoder.encode(frame)
    path = tmp_path / "v/1.png"
    path.parent.mkdir()
    path.write_bytes(bytes(packet))
    wanted = high[:, :, :3] if channels > 2 else high[:, :, :1].repeat(3, axis=2)
    np.testing.assert_array_equal(read_one(path), wanted)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "jpg", "webp"])
def test_turns_of_exif(tmp_path: Path, turn: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = turn
    options = {"jpg": {"subsampling": 0, "quality": 98}, "webp": {"lossless": True}, "png": {}}[suffix]
    path = tmp_path / f"v/1.{suffix}"
    wanted = saved(Image.fromarray(picture(9, 40, 30)), path, exif=exif, **options)
    difference = np.abs(read_one(path).astype(int) - wanted)
    assert difference.mean() < (0.6 if suffix == "jpg" else 1e-9)


FAULTS = {
    "png": [
        *(b"iCCPx\0\0no profile", b"eXIfII*\0\xff\xff\xff\x7f", b"eXIfno exif", b"tEXtno keyword"),
        *(b"zTXta\0\0no zlib", b"gAMA\0", b"sBIT\x08\x08\x08", b"tRNS\0\1\0\2\0\3", b"prVtanything"),
    ],
    "jpg": [
        *(b"\xe1Exif\0\0", b"\xe1Exif\0\0no exif", b"\xe1Exif\0\0MM\0*\x7f\xff\xff\xff"),
        *(b"\xe1Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\1", b"\xe2ICC_PROFILE\0\1\1no profile", b"\xfe\xff\xd9"),
    ],
    "webp": [b"EXIFno exif", b"EXIFII*\0\xff\xff\xff\x7f", b"ICCPno profile", b"XMP no text"],
}


def with_part(data: bytes, suffix: str, part: bytes) -> bytes:
    """Add a chunk or segment to an image file, well-formed in itself."""
    if suffix == "png":
        chunk = (len(part) - 4).to_bytes(4, "big") + part + zlib.crc32(part).to_bytes(4, "big")
        return data[:33] + chunk + data[33:]
    if suffix == "jpg":
        return data[:2] + b"\xff" + part[:1] + (len(part) + 1).to_bytes(2, "big") + part[1:] + data[2:]
    flags = {b"EXIF": 8, b"ICCP": 32, b"XMP ": 4}[part[:4]]
    extended = bytes([flags, 0, 0, 0]) + (63).to_bytes(3, "little") + (47).to_bytes(3, "little")
    chunk = part[:4] + (len(part) - 4).to_bytes(4, "little") + part[4:] + bytes(len(part) % 2)
    body = b"WEBPVP8X" + (10).to_bytes(4, "little") + extended
    body += chunk + data[12:] if part[:4] == b"ICCP" else data[12:] + chunk
    return b"RIFF" + len(body).to_bytes(4, "little") + body


@pytest.mark.parametrize("suffix", FAULTS)
def test_faults_beside_the_picture_do_no_harm(tmp_path: Path, suffix: str) -> None:
    folder = make_images(tmp_path / "v", range(1), f"{{}}.{suffix}")
    path = folder / f"0.{suffix}"
    data, wanted = path.read_bytes(), read_one(path)
    for part in FAULTS[suffix]:
        path.write_bytes(with_part(data, suffix, part))
        np.testing.assert_array_equal(read_one(path), wanted)


@pytest.mark.parametrize("codec", ["ffv1", "h264_rgb"])
def test_a_folder_and_a_video_of_the_same_frames_give_the_same(tmp_path: Path, codec: Any) -> None:
    folder = make_images(tmp_path / "folder", range(30), size=(52, 37))
    pix_fmt = "bgr0" if codec == "ffv1" else None
    video = make_video(tmp_path / "video.mkv", codec=codec, pix_fmt=pix_fmt, frames=30, width=52, height=37)
    engine = tiny_engine(tmp_path / "tiny.onnx")
    for settings in ({}, {"step": 1, "stride": 2}, {"step": 1, "anchor": "centre", "tail": "repeat"}):
        one = extract(folder, engine, images="frame_%06d.png", **settings)  # type: ignore[call-overload]
        other = extract(video, engine, **settings)  # type: ignore[call-overload]
        assert isinstance(one, Features)
        assert len(one.frame_range) > 6
        for name in one.arrays:
            np.testing.assert_array_equal(one.arrays[name], other.arrays[name])
        np.testing.assert_array_equal(one.frame_range, other.frame_range)
        assert one.fps == other.fps
    np.testing.assert_allclose(one.timestamps_ms, other.timestamps_ms, atol=0.51)  # Matroska counts in ms


def test_a_frame_rate(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(40))
    engine = tiny_engine(tmp_path / "tiny.onnx")
    every = extract(folder, engine, images="*.png", images_fps=10)
    third = extract(folder, engine, images="*.png", images_fps=30, fps=10)
    assert (every.fps, third.fps) == (10, 10)
    assert every.timestamps_ms[0].tolist() == [0, 400]
    assert third.frame_range[:, 0].tolist() == [1, 13, 25]
    assert third.timestamps_ms[0].tolist() == [0, 400]  # each sample shows the latest frame


def test_engines_of_the_images_own_size(tmp_path: Path) -> None:
    make_images(tmp_path / "all/a", range(6), size=(40, 30))
    make_images(tmp_path / "all/b", range(6), size=(48, 32))
    engine = tiny_flow_engine(tmp_path / "flow.onnx")
    found = {item.name: item for item in extract([tmp_path / "all"], engine, images="*.png")}
    shapes = {name: item.features and item.features.arrays["flow"].shape for name, item in found.items()}
    assert shapes == {"a": (5, 2, 30, 40), "b": (5, 2, 32, 48)}


# ---- what may be wrong


def test_a_number_without_a_file(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(3, 12))
    (folder / "frame_000007.png").unlink()
    text = refusal(folder, "frame_%06d.png")
    assert "frame_000007.png is missing: 8 images bear numbers from 3 to 11" in text
    assert "--images 'frame_*.png' take what is there" in text
    assert numbers(folder, "frame_*.png") == [3, 4, 5, 6, 8, 9, 10, 11]


def test_a_link_to_itself_hides_no_frame(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(3))
    (folder / "notes").symlink_to("notes")
    assert numbers(folder, "frame_%06d.png") == [0, 1, 2]


def test_no_frames(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v")
    assert "no file fits --images *.jpg: it holds 10 files, such as frame_000000.png" in refusal(
        folder, "*.jpg"
    )
    (tmp_path / "empty").mkdir()
    assert "it holds no file" in refusal(tmp_path / "empty")
    assert "No such file" in refusal(tmp_path / "absent")
    with pytest.raises(VideoError, match="--images PATTERN reads folders of frames"):
        open_video(folder)


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "bmp"])
@pytest.mark.parametrize("left", [0, 1, 2, 12, 60, 0.5, 0.97, -1])
@pytest.mark.parametrize("at", [0, 4])
def test_a_truncated_image(tmp_path: Path, suffix: str, left: float, at: int) -> None:
    folder = make_images(tmp_path / "v", pattern=f"{{:06d}}.{suffix}")
    path = folder / f"{at:06d}.{suffix}"
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * left) if 0 < left < 1 else int(left)])
    assert path.name in refusal(folder)


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_photograph_is_not_taken_for_its_thumbnail(tmp_path: Path, progressive: bool) -> None:
    """EXIF may contain a whole JPEG, with its own end marker."""
    small = io.BytesIO()
    Image.fromarray(picture(1, 16, 16)).save(small, "jpeg")
    exif = b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + small.getvalue()
    folder = make_images(tmp_path / "v", range(1), "{}.jpg", exif=exif, progressive=progressive)
    assert numbers(folder, "*") == [0]
    data = (folder / "0.jpg").read_bytes()
    assert data.count(b"\xff\xd9") == 2
    (folder / "0.jpg").write_bytes(data[:-2])
    assert "truncated: it has no end mark" in refusal(folder)


def test_a_flipped_bit_in_a_png(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v")
    path = folder / "frame_000005.png"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    assert "frame_000005.png: damaged: a wrong sum" in refusal(folder)


def test_random_damage_gives_a_picture_or_one_error(tmp_path: Path) -> None:
    generator = np.random.default_rng(3)
    refused: list[str] = []
    for suffix in ("png", "jpg", "webp", "bmp"):
        exif = Image.Exif()
        exif[0x0112] = 6
        options = {} if suffix == "bmp" else {"exif": exif}
        folder = make_images(tmp_path / suffix, range(1), f"{{}}.{suffix}", **options)
        path = folder / f"0.{suffix}"
        whole = path.read_bytes()
        for _ in range(60):
            data = bytearray(whole)
            for _ in range(generator.integers(1, 6)):
                data[generator.integers(len(data))] = generator.integers(256)
            path.write_bytes(data[: generator.integers(len(data) // 2, len(data) + 1)])
            try:
                read_one(path)
            except VideoError as error:
                refused.append(str(error))
    assert len(refused) > 150
    assert all(text.isprintable() for text in refused)


def test_other_things_than_images(tmp_path: Path) -> None:
    for name, data in {"text": b"hello, this is no image\n" * 9, "gif": b"GIF89a" + bytes(99)}.items():
        folder = make_images(tmp_path / name)
        (folder / "frame_000003.png").write_bytes(data)
        assert "frame_000003.png: not a JPEG, PNG, WebP or BMP image" in refusal(folder)
    folder = make_images(tmp_path / "link")
    (folder / "frame_000004.png").unlink()
    (folder / "frame_000004.png").symlink_to(tmp_path / "nowhere")
    assert "frame_000004.png: No such file" in refusal(folder)
    moving = tmp_path / "moving"
    moving.mkdir()
    one, two = (Image.fromarray(picture(i)) for i in range(2))
    for name in ("a.png", "a.webp"):
        one.save(moving / name, save_all=True, append_images=[two])
        assert f"{name}: an animation" in refusal(moving, name.replace("a.", "*."))


def test_a_suffix_that_lies_is_no_matter(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    folder.mkdir()
    for number, kind in enumerate(("png", "bmp", "png")):
        Image.fromarray(picture(number)).save(folder / f"{number}.jpg", kind)
    assert numbers(folder, "%d.jpg") == [0, 1, 2]


def test_images_of_two_sizes(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(5))
    make_images(folder, range(5, 6), size=(48, 64))
    assert "frame_000005.png: 48x64 pixels, and the first image of its folder has 64x48" in refusal(folder)


@pytest.mark.parametrize("pattern", ["frame_%06d.png", "*.png"])
def test_a_folder_that_still_grows(tmp_path: Path, pattern: str) -> None:
    folder = make_images(tmp_path / "v", range(5))
    with open_video(folder, images=Images(pattern)) as decoder:
        next(iter(decoder))
        make_images(folder, range(5, 6))
        with pytest.raises(VideoError, match="held 5 images, now 6"):
            list(decoder)


def test_too_short(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "v", range(3))
    with pytest.raises(VideoError, match="3 frames, a window of tiny needs 4 frames"):
        extract(folder, tiny_engine(tmp_path / "tiny.onnx"), images="*.png")


def test_an_image_that_no_window_uses_is_not_even_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_images(tmp_path / "v", range(50))
    engine = tiny_engine(tmp_path / "tiny.onnx")
    read: list[str] = []
    real: Callable[..., Any] = image_folder_module.read_image
    monkeypatch.setattr(
        image_folder_module,
        "read_image",
        lambda path, name: (read.append(Path(path).name), real(path, name))[1],
    )
    extract(folder, engine, images="*.png", step=20)
    used = [f"frame_{first + i:06d}.png" for first in (0, 20, 40) for i in range(4)]
    assert read == used


# ---- which folders, and their names


def named(*arguments: object, root: Path | None = None, pattern: str = "*.png") -> dict[str, Path]:
    jobs = find_videos([str(item) for item in arguments], root, images=Images(pattern))
    return {job.name: job.path for job in jobs}


def test_a_folder_is_named_by_its_path_below_its_root(tmp_path: Path) -> None:
    top = tmp_path / "all"
    for name in ("a", "b/c.v1", "b/d", "b/.hidden", ".cache/x"):
        make_images(top / name, range(1))
    (top / "a/film.mp4").write_bytes(b"x")
    (top / "empty").mkdir()
    assert named(top) == {"a": top / "a", "b/c.v1": top / "b/c.v1", "b/d": top / "b/d"}
    assert named(top / "a") == {"a": top / "a"}
    assert named(top / "b/d", root=tmp_path) == {"all/b/d": top / "b/d"}
    with pytest.raises(UsageError, match="not below --root"):
        named(top / "a", root=top / "a")
    make_images(top, range(1))
    assert list(named(top)) == ["all", "a", "b/c.v1", "b/d"]


def test_listed_folders_and_files(tmp_path: Path) -> None:
    make_images(tmp_path / "data/a.b", range(1))
    (tmp_path / "data/c.mp4").write_bytes(b"x")
    (tmp_path / "data/gone.mp4").write_bytes(b"x")
    (tmp_path / "data/list.txt").write_text("a.b/\nc.mp4\ngone\n")
    jobs = find_videos([tmp_path / "data/list.txt"], images=Images("*.png"))
    assert [(job.name, job.images is not None) for job in jobs] == [
        ("a.b", True),
        ("c", False),
        ("gone", False),
    ]
    assert jobs[2].path == tmp_path / "data/gone"


def test_a_job_can_be_sent_to_another_process(tmp_path: Path) -> None:
    (job,) = find_videos([make_images(tmp_path / "v", range(1))], images=Images("*.png", 10))
    sent = pickle.loads(pickle.dumps(job))
    assert sent == job
    assert sent.images == Images("*.png", 10)


def test_no_folder_of_images(tmp_path: Path) -> None:
    make_images(tmp_path / "a", range(1))
    with pytest.raises(
        UsageError, match=r"no folder in it has files that fit --images \*\.jpg: it holds files"
    ):
        named(tmp_path, pattern="*.jpg")
    with pytest.raises(UsageError, match="folders of frames with --images PATTERN"):
        find_videos([tmp_path])
    make_images(tmp_path / "a/a", range(1))
    with pytest.raises(UsageError, match=f"would both write a: --root {tmp_path} keeps"):
        named(tmp_path / "a")


# ---- the command


@pytest.mark.parametrize("format", ["npz", "npy", "pickle", "slowfast", "hdf5"])
def test_all_formats_and_again(tmp_path: Path, format: str) -> None:
    make_images(tmp_path / "all/a", range(9))
    make_images(tmp_path / "all/b/c", range(8), pattern="frame_{:06d}.png")
    engine, out = tiny_engine(tmp_path / "tiny.onnx"), tmp_path / "out"
    options = ("--engine", engine, tmp_path / "all", "--images", "frame_%06d.png", "--format", format)
    first = vfx_run(*options, "--output", out)
    assert first.exit_code == 0, first.stderr
    written = files_in(out)
    assert len(written) == {"hdf5": 1, "npz": 2, "slowfast": 2}.get(format, 6)
    again = vfx_run(*options, "--output", out)
    assert "2 were done before" in again.stderr
    assert files_in(out) == written


@pytest.mark.parametrize("format", ["npz", "hdf5"])
def test_a_changed_folder_is_done_again(tmp_path: Path, format: str) -> None:
    folder = make_images(tmp_path / "v", range(9))
    engine, out = tiny_engine(tmp_path / "tiny.onnx"), tmp_path / "out"
    options = ("--engine", engine, "--output", out, "--format", format, folder)

    def done(*more: object) -> bool:
        result = vfx_run(*options, *(more or ("--images", "*.png")))
        assert result.exit_code == 0, result.stderr
        return "1 were done before" in result.stderr

    assert not done()
    assert done()
    (folder / "notes.txt").write_text("no frame")
    assert done()
    make_images(folder, range(9, 10))
    assert not done()
    (folder / "sub.png").mkdir()
    assert done()
    (folder / "frame_000002.png").rename(tmp_path / "aside")
    (folder / "frame_000002.png").symlink_to(tmp_path / "aside")
    assert done()
    Image.fromarray(noise(48, 64, 3)).save(folder / "frame_000003.png")
    assert not done()
    (folder / "frame_000000.png").unlink()
    assert not done()
    assert not done("--images", "frame_%06d.png")
    assert not done("--images", "frame_%06d.png", "--images-fps", "10")
    assert done("--images", "frame_%06d.png", "--images-fps", "10")
    shutil.rmtree(folder)


def test_one_bad_folder_fails_alone(tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        make_images(tmp_path / "all" / name, range(9))
    (tmp_path / "all/b/frame_000004.png").write_bytes(b"")
    (tmp_path / "all/list.csv").write_text("a\nb\nc\nd\n")
    engine, out = tiny_engine(tmp_path / "tiny.onnx"), tmp_path / "out"
    done = vfx_run("--engine", engine, tmp_path / "all/list.csv", "--images", "*.png", "--output", out)
    assert done.exit_code == 1
    assert files_in(out) == {"a.npz", "c.npz", "failures.jsonl"}
    reasons = failures(out)
    assert "frame_000004.png: is empty (0 bytes)" in reasons["b"]
    assert "No such file" in reasons["d"]
    assert read_features(out / "a.npz").meta["source"]["pattern"] == "*.png"


def test_refused_options(tmp_path: Path) -> None:
    engine = tiny_engine(tmp_path / "tiny.onnx")
    folder = make_images(tmp_path / "v", range(5))
    for options, words in {
        ("--images", "x.png"): "expected a number",
        ("--images", "*.png", "--images-fps", "-1"): "--images-fps -1: expected a rate",
    }.items():
        done = vfx_run("--engine", engine, folder, *options, "--output", tmp_path / "out")
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert words in done.stderr
