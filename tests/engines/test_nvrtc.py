"""The kernels compile for every GPU that is named; what is compiled is kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfx_engines.errors import EngineError
from vfx_engines.nvrtc import ARCHITECTURES, compiled
from vfx_runtime.surfaces import KERNELS, source


@pytest.mark.parametrize("capability", ARCHITECTURES)
def test_kernels_compile(tmp_path: Path, capability: tuple[int, int]) -> None:
    cubin = compiled(source(), "preprocess.cu", capability, tmp_path)

    assert cubin.startswith(b"\x7fELF")
    for name in (*KERNELS.values(), "gather_chunks", "gather_bytes"):
        assert name.encode() in cubin


def test_a_second_time_comes_from_the_cache(tmp_path: Path) -> None:
    kernel = 'extern "C" __global__ void nothing() {}'
    first = compiled(kernel, "nothing.cu", (9, 0), tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"what is there")

    assert first.startswith(b"\x7fELF")
    assert compiled(kernel, "nothing.cu", (9, 0), tmp_path) == b"what is there"
    assert compiled(kernel, "nothing.cu", (8, 0), tmp_path) != b"what is there"


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    kernel = 'extern "C" __global__ void nothing() {}'

    assert compiled(kernel, "nothing.cu", (9, 0), tmp_path / "file" / "cache").startswith(b"\x7fELF")


def test_what_cannot_be_kept_leaves_nothing_in_the_cache(tmp_path: Path) -> None:
    kernel = 'extern "C" __global__ void nothing() {}'
    compiled(kernel, "nothing.cu", (9, 0), tmp_path)
    (file,) = tmp_path.iterdir()
    file.unlink()
    file.mkdir()  # nothing can be renamed to this

    assert compiled(kernel, "nothing.cu", (9, 0), tmp_path).startswith(b"\x7fELF")
    assert list(tmp_path.iterdir()) == [file]


def test_an_error_names_the_line(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"broken.cu: NVRTC cannot compile it .*broken.cu\(1\)") as caught:
        compiled("this is no kernel", "broken.cu", (9, 0), tmp_path)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())
