"""The benchmarks' engines and videos, made when first asked for and kept in ``.bench/``; results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from itertools import islice
from pathlib import Path
from typing import Any

import av

from vfx_engines.spec import Precision
from vfx_runtime.measuring import machine_facts
from vfx_runtime.opening import open_video

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".bench"
RESULTS = ROOT / "benchmarks" / "results"
SHARED_VIDEOS = ROOT.parent / "shared" / "videos"


def engine(precision: Precision, frames: int = 64) -> Path:
    """I3D with random weights (seed 0), since weights do not change how long a network takes."""
    path = FOLDER / f"i3d_{precision}_{frames}.onnx"
    if not path.exists():
        from vfx_export.catalogue import find
        from vfx_export.exporting import export_model

        export_model(find("i3d"), path, checkpoint=None, precision=precision, frames=frames)
    return path


def real_videos(given: Sequence[Path] = ()) -> list[Path]:
    """The given videos, or the two uncut ones of the shared kit (320x240 and 480x360, H.264).

    Raises:
        SystemExit: there are none.
    """
    videos = list(given) or sorted(SHARED_VIDEOS.glob("v_???????????.mp4"))
    if not videos:
        raise SystemExit(f"no videos in {SHARED_VIDEOS}: name some on the command line")
    return videos


def looped(source: Path, seconds: float) -> Path:
    """A video of about this many seconds, made by repeating the packets of ``source`` without re-encoding."""
    path = FOLDER / f"{source.stem}_{seconds:g}s.mp4"
    if path.exists():
        return path
    path.parent.mkdir(exist_ok=True)
    part = path.with_suffix(".part.mp4")
    with av.open(str(source)) as container, av.open(str(part), "w") as out:
        stream = container.streams.video[0]
        copy = out.add_stream_from_template(stream)
        base = stream.time_base
        assert base is not None
        packets = [packet for packet in container.demux(stream) if packet.size]
        # Computed in whole frames, because a stream's duration may end within its last frame.
        period = round(1 / (Fraction(stream.average_rate or 25) * base))
        first = min(packet.pts or 0 for packet in packets)
        length = max(packet.pts or 0 for packet in packets) - first + period
        contents = [(bytes(p), (p.pts or 0) - first, (p.dts or 0) - first, p.is_keyframe) for p in packets]
        for turn in range(max(1, round(seconds / float(length * base)))):
            for data, pts, dts, key in contents:
                packet = av.Packet(data)
                packet.pts, packet.dts, packet.duration = (
                    pts + turn * length,
                    dts + turn * length,
                    period,
                )
                packet.time_base, packet.stream, packet.is_keyframe = base, copy, key
                out.mux(packet)
    part.rename(path)
    return path


def pieces(source: Path, seconds: float, paths: Sequence[Path]) -> None:
    """Encode pieces of a video. Each has this many seconds, and begins half as many after the previous one.

    Raises:
        SystemExit: the video ends before the last piece begins.
    """
    for number, path in enumerate(paths):
        part = path.with_suffix(".part.mp4")
        index = -1
        with open_video(source) as decoder, av.open(str(part), "w") as out:
            rate = Fraction(decoder.info.fps).limit_denominator(1001)
            stream = out.add_stream("libx264", rate=rate, options={"preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = decoder.info.width, decoder.info.height, "yuv420p"
            length = round(seconds * rate)
            begin = number * length // 2
            for index, frame in enumerate(islice(decoder, begin, begin + length)):
                picture = av.VideoFrame.from_ndarray(frame.rgb().copy(), format="rgb24")
                picture.pts, picture.time_base = index, 1 / rate
                out.mux(stream.encode(picture))
            out.mux(stream.encode())
        if index < 0:
            raise SystemExit(f"{source}: of less than {number * seconds / 2:g} s, too short to be cut")
        part.rename(path)


def save(name: str, found: dict[str, Any]) -> Path:
    """Write ``benchmarks/results/<name>.json``: the results, with the machine and versions."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine_facts(), **found}, indent=1) + "\n", "utf-8")
    return path
