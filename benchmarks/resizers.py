"""CPU time per frame of resize and crop: vfx's kernel and Pillow, which give the same pixels.

    .venv/bin/python benchmarks/resizers.py

To a short side of 256 and a centre crop of 224, as I3D takes frames; the best of the rounds counts.
"""

from __future__ import annotations

import argparse
import time
from importlib.metadata import version

import numpy as np
from material import save
from numpy.typing import NDArray
from PIL import Image

from vfx_engines.spec import Crop, Resize, Transform
from vfx_runtime.resize import plan

SIZES = ((240, 320), (360, 480), (720, 1280), (1080, 1920))
TRANSFORM = Transform(Resize("short_side", 256, 256), Crop(224, 224, "centre_floor"))
FRAMES = 50


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    found = {}
    for height, width in SIZES:
        frame = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
        ours, theirs = (np.empty((224, 224, 3), np.uint8) for _ in range(2))
        plan(TRANSFORM, height, width).apply(frame, ours)
        best = {"vfx": float("inf"), f"Pillow {version('pillow')}": float("inf")}
        for _ in range(rounds):
            started = time.process_time()
            for _ in range(FRAMES):
                plan(TRANSFORM, height, width).apply(frame, ours)
            between = time.process_time()
            for _ in range(FRAMES):
                theirs = with_pillow(frame)
            seconds = between - started, time.process_time() - between
            best = {
                name: min(old, new / FRAMES) for (name, old), new in zip(best.items(), seconds, strict=True)
            }
        assert np.array_equal(ours, theirs), "vfx and Pillow differ"
        found[f"{width}x{height}"] = {name: value * 1e3 for name, value in best.items()}
        print(
            f"{width}x{height}: " + ", ".join(f"{name} {value * 1e3:.3f} ms" for name, value in best.items())
        )
    print(save("resizers", {"cpu_ms_per_frame": found}))


def with_pillow(frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Resize and crop with Pillow, like the reference extractors: uint8 ``[224, 224, 3]``."""
    height, width = frame.shape[:2]
    short = min(height, width)
    size = (256 * width // short, 256 * height // short)
    image = Image.fromarray(frame).resize(size, Image.Resampling.BILINEAR)
    left, top = (image.width - 224) // 2, (image.height - 224) // 2
    return np.asarray(image.crop((left, top, left + 224, top + 224)))


if __name__ == "__main__":
    main()
