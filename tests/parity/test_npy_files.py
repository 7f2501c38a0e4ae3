"""``--format npy`` against what video_features itself wrote for each family: files, shapes, dtypes, times."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from parity_kit import e2e
from tolerances import TIMESTAMP_MS
from vfx_engines.spec import Output
from vfx_runtime.claims import Claims
from vfx_runtime.features import RowSpool
from vfx_runtime.job import Job
from vfx_runtime.writers import open_writer

JOBS = {
    "i3d_rgb_24_12": "i3d",
    "i3d_flow_10": "i3d_flow_raft",
    "s3d": "s3d",
    "r21d_18": "r2plus1d_18_16_kinetics",
    "r21d_34_8": "r2plus1d_34_8_ig65m_ft_kinetics",
    "clip_ViT-B_32": "clip_vit_b_32",
    "resnet18": "resnet18",
    "raft_6f": "raft_sintel",
    "vggish": "vggish",
}
"""A run of the public tool: the row that takes its place."""

BESIDE = {"first_stack_input", "raft_first", "raft_shape"}
"""What the kit adds, and video_features does not write."""


@pytest.mark.parametrize("job", JOBS)
def test_files_are_those_of_video_features(tmp_path: Path, job: str) -> None:
    pytest.importorskip("torch")
    from vfx_export.catalogue import find

    public = e2e(job)
    output = find(JOBS[job]).feature
    # The kit keeps every fourth pixel of a field.
    shape = tuple(public.get("raft_shape", public[output.name].shape))
    output = sized(output, shape)
    want = {name: public[name].shape for name in public.keys() - BESIDE} | {output.name: shape}
    writer, files = written(tmp_path, output, shape[0], public)

    assert {path.name for path in files} == {f"a_{name}.npy" for name in want}
    found = {path.stem.removeprefix("a_"): np.load(path) for path in files}
    assert {name: array.shape for name, array in found.items()} == want
    float32 = {name for name, array in found.items() if array.dtype == np.float32}
    assert float32 == {"vggish"} & found.keys()
    assert {array.dtype for name, array in found.items() if name not in float32} <= {np.dtype(np.float64)}
    if "fps" in want:
        np.testing.assert_allclose(found["timestamps_ms"], public["timestamps_ms"], atol=TIMESTAMP_MS)

    for path in files:
        whole = path.read_bytes()
        path.unlink()
        assert not writer.is_done(Job(tmp_path / "a.mp4", "a")), f"{path.name} is missing"
        path.write_bytes(whole[:-1])
        assert not writer.is_done(Job(tmp_path / "a.mp4", "a")), f"{path.name} is cut off"
        path.write_bytes(whole)
    assert writer.is_done(Job(tmp_path / "a.mp4", "a"))


def sized(output: Output, shape: tuple[int, ...]) -> Output:
    """The output of an engine that is open at the size of those rows."""
    from dataclasses import replace

    pairs = (1,) if output.per == "pair" else ()
    return replace(output, shape=(*pairs, *(int(size) for size in shape[1:])))


def written(folder: Path, output: Output, rows: int, public: dict[str, Any]) -> tuple[Any, list[Path]]:
    """The files of so many rows, which lie in time as those of the public run do."""
    fps = float(public.get("fps", 1.0))
    times = public.get("timestamps_ms", np.arange(rows, dtype=np.float64))
    with Claims(folder) as claims, RowSpool((output,), folder) as spool:
        for k in range(rows):
            here = (times[k], times[k] + 2000 / fps) if output.per != "window" else (times[k] - 1, times[k])
            zeros = np.zeros((1, *output.row), np.float32)
            spool.append({output.name: zeros}, np.array([[k, k + 2]]), np.array([here]))
        writer = open_writer("npy", folder, (output,), fingerprint="", claims=claims)
        return writer, writer.write(Job(folder / "a.mp4", "a"), spool, fps, {})
