"""Caffe2 pickles as PySlowFast publishes them, damaged ones, and ones that would run something."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from exports import heavy, heavy_in_ci
from parity_kit import kit, shared
from vfx_engines.errors import CheckpointError
from vfx_export.catalogue import catalogue_shapes, find
from vfx_export.checkpoints import read_checkpoint
from vfx_export.fitting import load_into
from vfx_export.pyslowfast_keys import blob_key, rename_pyslowfast

ROWS = {
    "c2d_8x8_r50": "C2D_8x8_R50",
    "i3d_nln_8x8_r50": "I3D_NLN_8x8_R50",
    "slowfast_8x8_r50": "SLOWFAST_8x8_R50",
}


def blob_names(model: str) -> dict[str, str]:
    """Blob -> key, as PySlowFast's own converter was seen to do it."""
    names: dict[str, str] = json.loads((shared("parity") / "caffe2" / f"{model}.json").read_text())["blobs"]
    return names


def python2(blobs: dict[str, np.ndarray]) -> bytes:
    """What Python 2 and its NumPy write: protocol 2, bytes as short or long strings."""

    def text(value: bytes) -> bytes:
        return (
            b"U" + bytes([len(value)]) + value
            if len(value) < 256
            else b"T" + struct.pack("<i", len(value)) + value
        )

    def whole(value: int) -> bytes:
        return b"J" + struct.pack("<i", value)

    parts = [b"\x80\x02}(" + text(b"blobs") + b"}("]
    for name, array in blobs.items():
        kind = array.dtype
        out = text(name.encode()) + b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n"
        out += whole(0) + b"\x85" + text(b"b") + b"tR(" + whole(1) + b"("
        out += b"".join(whole(size) for size in array.shape) + b"t"
        out += b"cnumpy\ndtype\n(" + text(kind.str[1:].encode()) + whole(0) + whole(1) + b"tR("
        out += whole(3) + text(kind.str[:1].encode()) + b"NNN" + whole(-1) * 2 + whole(0) + b"tb"
        parts += out, b"\x89", text(array.tobytes()), b"tb"
    return b"".join([*parts, b"uu."])


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


@pytest.mark.parametrize("model", ROWS.values())
def test_blobs_are_named_as_pyslowfast_names_them(model: str) -> None:
    names = blob_names(model)
    assert {name: blob_key(name) for name in names} == names


@pytest.mark.parametrize(
    "name", [heavy_in_ci("slowfast_8x8_r50"), heavy("c2d_8x8_r50"), heavy("i3d_nln_8x8_r50")]
)
def test_a_published_file_fits_its_network(tmp_path: Path, name: str) -> None:
    state = kit(ROWS[name]).checkpoint()
    blobs = {blob: state[key] for blob, key in blob_names(ROWS[name]).items()}
    # Axes of 1 at the end are left out where a kernel has no extent.
    points = [blob for blob, value in blobs.items() if value.shape[2:] == (1, 1, 1)]
    blobs.update({blob: blobs[blob].reshape(blobs[blob].shape[:2]) for blob in points})
    left = {"conv1_w_momentum": np.ones(3, np.float32), "lr": np.array(0.1), "model_iter": np.array([5])}
    (tmp_path / "a.pkl").write_bytes(python2(blobs | left))
    module = find(name).network(False)
    load_into(module, read_checkpoint(tmp_path / "a.pkl"), model=name, rename=find(name).layouts)
    for key, value in module.state_dict().items():
        assert torch.equal(value, torch.from_numpy(np.array(state[key])))


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_arrays_are_read_from_every_protocol(tmp_path: Path, protocol: int) -> None:
    blobs = {
        "a": np.arange(6, dtype=np.float32).reshape(2, 3),
        "fortran": np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3)),
        "big": np.arange(3, dtype=">f4"),
        "half": np.arange(3, dtype=np.float16),
        "whole": np.arange(3),
        "none": np.zeros((0, 2), np.float32),
    }
    content = pickle.dumps({"blobs": {**blobs, "lr": np.float64(0.1), "b": 3}, "cfg": "TRAIN"}, protocol)
    (tmp_path / "a.pkl").write_bytes(content)
    found = read_checkpoint(tmp_path / "a.pkl")
    assert list(found) == list(blobs)
    for name, value in blobs.items():
        np.testing.assert_array_equal(found[name].numpy(), value)


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("place", ["blob", "beside", "instead"])
def test_nothing_in_a_hostile_pickle_is_run(tmp_path: Path, protocol: int, place: str) -> None:
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(marker),)

    blobs: dict[str, Any] = {"conv1_w": np.ones(2, np.float32)}
    content = {
        "blob": {"blobs": {**blobs, "conv1_b": Attack()}},
        "beside": {"blobs": blobs, "cfg": Attack()},
        "instead": {"weight": Attack()},
    }[place]
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(content, protocol))
    text = refusal(tmp_path / "a.pkl")
    assert f"unpickling it would call {os.mkdir.__module__}.mkdir: refused, and nothing in it was run" in text
    assert not marker.exists()


@pytest.mark.parametrize(
    "asked",
    [
        "builtins\neval",
        "__builtin__\ngetattr",
        "numpy\nload",
        "numpy\nfromfile",
        "numpy.core.multiarray\nfromfile",
        "numpy.core.multiarray\n_reconstruct.__globals__",
        "numpy.testing._private.utils\nruncstring",
        "torch\nload",
        "_codecs\ndecode",
    ],
    ids=lambda asked: asked.replace("\n", "."),
)
def test_no_other_name_is_looked_up(tmp_path: Path, asked: str) -> None:
    (tmp_path / "a.pkl").write_bytes(b"\x80\x02c" + asked.encode() + b"\nX\x01\x00\x00\x00a\x85R.")
    assert f"would call {asked.replace(chr(10), '.')}: refused" in refusal(tmp_path / "a.pkl")


def test_arrays_of_objects_are_damage(tmp_path: Path) -> None:
    content = pickle.dumps({"blobs": {"a": np.array([{}, None], dtype=object)}})
    (tmp_path / "a.pkl").write_bytes(content)
    assert "damaged pickle: ValueError: numbers of type 'O8'" in refusal(tmp_path / "a.pkl")


def test_an_array_of_another_size_than_its_bytes_is_damage(tmp_path: Path) -> None:
    content = python2({"conv1_w": np.ones((2, 3), np.float32)})
    for size in (b"\x04\x00\x00\x00", b"\xff\xff\xff\x7f", b"\xff\xff\xff\xff"):
        (tmp_path / "a.pkl").write_bytes(content.replace(b"J\x03\x00\x00\x00t", b"J" + size + b"t"))
        assert "damaged pickle: ValueError" in refusal(tmp_path / "a.pkl")


BOMBS = {
    "a memo of 32 GiB": b"\x80\x02}r\xff\xff\xff\x7f.",
    "a key of tuples in tuples": b"\x80\x02})" + b"\x85" * 300_000 + b"K\x01s.",
    "a key of twice itself, sixty times": b"\x80\x02})q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"K\x01s.",
    "a set of the same": b"\x80\x04\x8f()q\x00" + b"0h\x00h\x00\x86q\x00" * 60 + b"\x90.",
    "bytes by their number": b"\x80\x02cnumpy.core.numeric\n_frombuffer\n(J\x00\x00\x00\x40cnumpy\ndtype\n"
    b"X\x02\x00\x00\x00u1\x85RJ\x00\x00\x00\x40\x85X\x01\x00\x00\x00CtR.",
    "a shape of the same": b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n)R(K\x01)q\x00"
    + b"0h\x00h\x00\x86q\x00" * 60
    + b"NNNtb.",
    "a terabyte of text": b"\x80\x04\x8d" + struct.pack("<Q", 1 << 40) + b"a.",
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_small_file_takes_neither_memory_nor_time(tmp_path: Path, bomb: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    (tmp_path / "a.pkl").write_bytes(BOMBS[bomb])
    refusal(tmp_path / "a.pkl")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 * 1024


def test_arrays_have_no_more_bytes_than_the_file(tmp_path: Path) -> None:
    content = python2({"a": np.ones(1000, np.float32)})
    text = b"T" + struct.pack("<i", 4000)
    start = content.index(text)
    stored = content.replace(content[start : start + 4005], content[start : start + 4005] + b"q\x01")
    one = content[content.index(b"cnumpy.core") : start] + b"h\x01tb"
    many = b"".join(b"U\x03" + b"%03d" % number + one for number in range(200))
    (tmp_path / "a.pkl").write_bytes(stored.removesuffix(b"uu.") + many + b"uu.")
    assert "arrays of more bytes than the file can hold" in refusal(tmp_path / "a.pkl")


def test_a_pickle_that_changes_what_stands_for_numpy_changes_nothing_else(tmp_path: Path) -> None:
    # BUILD with a pair sets attributes, here of what stands for numpy.ndarray and for its maker.
    for name in ("numpy\nndarray", "numpy\ndtype", "numpy.core.multiarray\n_reconstruct"):
        data = b"\x80\x02c" + name.encode() + b"\n(N}X\x05\x00\x00\x00arrayK\x01stb."
        (tmp_path / "a.pkl").write_bytes(data)
        refusal(tmp_path / "a.pkl")
    (tmp_path / "b.pkl").write_bytes(python2({"conv1_w": np.ones(2, np.float32)}))
    assert read_checkpoint(tmp_path / "b.pkl")["conv1_w"].tolist() == [1, 1]


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = python2({"conv1_w": np.ones((2, 3), np.float32), "conv1_b": np.ones(2, np.float32)})
    for length in range(5, len(whole)):
        (tmp_path / "cut.pkl").write_bytes(whole[:length])
        refusal(tmp_path / "cut.pkl")
    assert "truncated" in refusal(tmp_path / "cut.pkl")


def test_a_pickle_without_blobs_and_a_torch_file_of_that_name(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps({"weights": np.ones(2)}))
    assert "without the blobs of Caffe2" in refusal(tmp_path / "a.pkl")
    torch.save({"model_state": {"a": torch.ones(2)}}, tmp_path / "b.pkl")
    assert read_checkpoint(tmp_path / "b.pkl")["a"].tolist() == [1, 1]
    torch.save({"a": torch.ones(2)}, tmp_path / "c.pkl", _use_new_zipfile_serialization=False)
    assert read_checkpoint(tmp_path / "c.pkl")["a"].tolist() == [1, 1]


def test_a_file_of_another_network_is_named(tmp_path: Path) -> None:
    state = kit("SLOW_8x8_R50").checkpoint()
    blobs = {blob: state[key] for blob, key in blob_names("C2D_8x8_R50").items()}
    (tmp_path / "C2D_8x8_R50.pkl").write_bytes(python2(blobs))
    row = find("c2d_8x8_r50")
    with pytest.raises(CheckpointError, match=r"should be .*it looks like slow_.x.*_r50"):
        load_into(
            row.network(False),
            read_checkpoint(tmp_path / "C2D_8x8_R50.pkl"),
            model=row.name,
            rename=row.layouts,
            others=catalogue_shapes,
        )


def test_batch_norm_that_was_split_becomes_one() -> None:
    values = torch.randn(6, 5, generator=torch.Generator().manual_seed(0))
    parts = values.reshape(2, 3, 5)
    key = "s1.pathway0_stem.bn"
    split = {
        f"{key}.weight": torch.ones(5).reshape(1, 5, 1, 1),
        f"{key}.bias": torch.zeros(5),
        f"{key}.bn.running_mean": torch.full((5,), 9.0),
        f"{key}.bn.running_var": torch.full((5,), 9.0),
        f"{key}.bn.num_batches_tracked": torch.tensor(3),
        f"{key}.split_bn.running_mean": parts.mean(1).flatten(),
        f"{key}.split_bn.running_var": parts.var(1, correction=0).flatten(),
        f"{key}.split_bn.num_batches_tracked": torch.tensor(3),
        "s1_fuse.bn.running_mean": torch.ones(2),
    }
    found = rename_pyslowfast(split)
    leaves = [f"{key}.{leaf}" for leaf in ("weight", "bias", "running_mean", "running_var")]
    assert set(found) == {*leaves, "s1_fuse.bn.running_mean"}
    assert found[f"{key}.weight"].shape == (5,)
    torch.testing.assert_close(found[f"{key}.running_mean"], values.mean(0))
    torch.testing.assert_close(found[f"{key}.running_var"], values.var(0, correction=0))
