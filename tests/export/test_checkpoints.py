"""Real files, real damage: every way in which I3D weights circulate, and what else gets such a name."""

import os
import pickle
import random
import zipfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import parity_kit
from vfx_engines.errors import CheckpointError
from vfx_export.checkpoints import read_checkpoint


def state() -> dict[str, torch.Tensor]:
    return {"stem.weight": torch.arange(24.0).reshape(2, 3, 4), "stem.bias": torch.ones(2)}


def same(found: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    return list(found) == list(wanted) and all(torch.equal(found[k], wanted[k]) for k in wanted)


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


class PyTorch03Pickler(pickle._Pickler):
    """Writes tensors as PyTorch 0.3 did: `_rebuild_tensor` with a typed storage, no hooks."""

    def __init__(self, file):
        super().__init__(file, protocol=2)
        self.storages: dict[str, torch.Tensor] = {}

    def persistent_id(self, item):
        if not isinstance(item, tuple) or not item or item[0] != "the storage of":
            return None
        key = str(id(item[1]))
        self.storages[key] = item[1]
        return ("storage", torch.FloatStorage, key, "cpu", item[1].numel(), None)

    def reducer_override(self, item):
        if not isinstance(item, torch.Tensor):
            return NotImplemented
        args = (("the storage of", item), 0, tuple(item.shape), item.stride())
        return torch._utils._rebuild_tensor, args


def save_as_pytorch_03(tensors: dict[str, torch.Tensor], path: Path) -> None:
    with path.open("wb") as file:
        pickle.dump(0x1950A86A20F9469CFC6C, file, protocol=2)
        pickle.dump(1001, file, protocol=2)
        sizes = {"short": 2, "int": 4, "long": 8}
        system = {"protocol_version": 1001, "little_endian": True, "type_sizes": sizes}
        pickle.dump(system, file, protocol=2)
        pickler = PyTorch03Pickler(file)
        pickler.dump(OrderedDict(tensors))
        pickle.dump(sorted(pickler.storages), file, protocol=2)
        for key in sorted(pickler.storages):
            values = pickler.storages[key].numpy().astype("<f4")
            file.write(np.int64(values.size).tobytes() + values.tobytes())


@pytest.mark.parametrize("name", ["a.pt", "b.safetensors", "no suffix", "line\nbreak.pth"])
@pytest.mark.parametrize("form", ["zip", "zip without checksums", "legacy", "0.3", "safetensors"])
def test_every_form_reads_whatever_its_name(tmp_path, form, name):
    path = tmp_path / name
    if form == "safetensors":
        save_file(state(), path)
    elif form == "0.3":
        save_as_pytorch_03(state(), path)
    else:
        torch.serialization.set_crc32_options(form != "zip without checksums")
        torch.save(state(), path, _use_new_zipfile_serialization=form != "legacy")
        torch.serialization.set_crc32_options(True)
    found = read_checkpoint(path)
    assert set(found) == set(state())
    assert all(torch.equal(found[key], value) for key, value in state().items())


@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: {"state_dict": s, "epoch": 3},
        lambda s: {"model_state": s, "cfg": "TRAIN: 1", "optimizer_state": {"state": {}}},
        lambda s: {"model_state_dict": s},
        lambda s: {"model": {"state_dict": s}},
        lambda s: {f"module.{k}": v for k, v in s.items()},
        lambda s: {"state_dict": {f"module.model.{k}": v for k, v in s.items()}},
        lambda s: {**s, "epoch": 3},
    ],
    ids=["lightning", "pyslowfast", "saved", "nested", "parallel", "parallel in state_dict", "flat"],
)
def test_wrappers_and_prefixes_come_off(tmp_path, wrap):
    torch.save(wrap(state()), tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), state())


def test_a_prefix_that_only_some_keys_have_stays(tmp_path):
    mixed = {"module.a": torch.ones(1), "b": torch.ones(1)}
    torch.save(mixed, tmp_path / "a.pt")
    assert same(read_checkpoint(tmp_path / "a.pt"), mixed)


@pytest.mark.parametrize(
    ("says", "content"),
    [
        ("zero bytes", b""),
        ("MP4 video", b"\x00\x00\x00\x20ftypisom" + bytes(2000)),
        ("HTML page", b"\n<!DOCTYPE html><html><title>404</title>"),
        ("git-lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:12\n"),
        ("image", b"\x89PNG\r\n\x1a\n" + bytes(50)),
        ("ONNX", b"\x08\x0a\x12\x07pytorch\x1a\x05"),
        ("JSON", b'{"message": "Not Found"}'),
        ("a text", b"Not Found"),
        ("no tensors inside", b"\x80\x02}q\x01U\x05blobsq\x02}q\x03s."),
        ("damaged pickle", b"(dp0\nS'blobs'\np1\n(dp2\nsb."),
        ("torch.save did not write", pickle.dumps([1, 2])),
        ("begins with 00 01 02", bytes(range(256))),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_no_checkpoint_is_named(tmp_path, says, content):
    path = tmp_path / "i3d_rgb.pt"
    path.write_bytes(content)
    assert says in refusal(path)


def test_missing_file_folder_and_odd_names(tmp_path):
    assert "No such file" in refusal(tmp_path / "none.pt")
    assert "directory" in refusal(tmp_path)
    assert r"\n" in refusal(tmp_path / "line\nbreak.pt")


KEYS = {"deep": b")" + b"\x85" * 300_000, "wide": b")q\x00" + b"0h\x00h\x00\x86q\x00" * 60}


@pytest.mark.parametrize("bomb", KEYS)
@pytest.mark.parametrize("form", ["zip", "legacy", "torchscript"])
def test_a_key_of_tuples_in_tuples(tmp_path, form, bomb):
    """Hashing it would end the process, or never end."""
    pickled = b"\x80\x02}" + KEYS[bomb] + b"K\x01s."
    if form == "legacy":
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
        data = (tmp_path / "a.pt").read_bytes()
        at = data.index(b"\x80\x02}q\x00X\x01\x00\x00\x00a")
        (tmp_path / "b.pt").write_bytes(data[:at] + pickled)
    else:
        torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
        with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
            for name in whole.namelist():
                archive.writestr(name, pickled if name.endswith("data.pkl") else whole.read(name))
            if form == "torchscript":
                archive.writestr("a/constants.pkl", b"")
    assert "tuples of more than 100 levels" in refusal(tmp_path / "b.pt")


def test_what_has_no_end(tmp_path):
    os.mkfifo(tmp_path / "pipe.pt")
    (tmp_path / "zero.pt").symlink_to("/dev/zero")
    for name in ("pipe.pt", "zero.pt"):
        assert "no regular file" in refusal(tmp_path / name)


def test_a_zip_that_is_far_larger_inside(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200_000_000))
    assert "its records are far larger than the file" in refusal(tmp_path / "a.pt")


def test_other_zip_archives(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.zeros(3))
    assert ".npz" in refusal(tmp_path / "a.npz")
    with zipfile.ZipFile(tmp_path / "b.pt", "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    assert "zip archive that torch.save did not write" in refusal(tmp_path / "b.pt")


@pytest.mark.parametrize("form", ["zip", "legacy", "plain"])
def test_code_in_a_checkpoint_is_refused_and_not_run(tmp_path, form):
    marker = tmp_path / "ran"

    class Attack:
        def __reduce__(self):
            return os.mkdir, (str(marker),)

    path = tmp_path / "evil.pt"
    if form == "plain":
        path.write_bytes(pickle.dumps({"weight": Attack()}))
    else:
        torch.save({"w": Attack()}, path, _use_new_zipfile_serialization=form == "zip")
    text = refusal(path)
    assert "refused, and nothing in it was run" in text
    assert form == "plain" or f"would call {os.mkdir.__module__}.mkdir" in text
    assert not marker.exists()


def test_the_environment_cannot_switch_safety_off(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    assert "would call torch.nn.modules.linear.Linear" in refusal(tmp_path / "module.pt")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"epoch": 3, "optimizer": {"lr": 0.1}}, "found the keys 'epoch', 'optimizer'"),
        ({}, "an empty dict"),
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
    ],
)
def test_no_tensors_inside(tmp_path, content, says):
    torch.save(content, tmp_path / "a.pt")
    assert says in refusal(tmp_path / "a.pt")


def test_a_dict_that_holds_itself_ends(tmp_path):
    loop: dict[str, object] = {}
    loop["model"] = loop
    torch.save(loop, tmp_path / "a.pt")
    assert "no tensors inside" in refusal(tmp_path / "a.pt")


def _saved(tmp_path: Path, form: str) -> bytes:
    path = tmp_path / "whole"
    if form == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=form == "zip")
    return path.read_bytes()


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_truncation_is_an_error(tmp_path, form):
    whole = _saved(tmp_path, form)
    path = tmp_path / "cut.pt"
    for length in [*range(1, len(whole), 7), len(whole) - 1]:
        path.write_bytes(whole[:length])
        refusal(path)
    path.write_bytes(whole[: len(whole) * 2 // 3])
    assert "truncated" in refusal(path)


def test_a_flipped_bit_in_a_zip_is_never_a_wrong_weight(tmp_path):
    whole = bytearray(_saved(tmp_path, "zip"))
    payload = bytes(whole).index(state()["stem.weight"].numpy().tobytes())
    path = tmp_path / "flipped.pt"
    for offset in range(0, 96, 5):
        damaged = whole.copy()
        damaged[payload + offset] ^= 1 << offset % 8
        path.write_bytes(damaged)
        text = refusal(path)
        assert "CRC" in text
        assert "/data/" in text


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_random_damage_gives_tensors_or_one_line(tmp_path, form):
    whole = _saved(tmp_path, form)
    rng = random.Random(0)
    path = tmp_path / "damaged.pt"
    messages = []
    for _ in range(100):
        damaged = bytearray(whole)
        for _ in range(rng.choice((1, 4))):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            found = read_checkpoint(path)
        except CheckpointError as error:
            messages.append(str(error))
            continue
        # A zip has checksums: what still reads was damaged in its padding.
        assert form != "zip" or same(found, state())
    assert len(messages) > 10
    assert all(len(message.splitlines()) == 1 for message in messages)


def test_a_record_marked_as_a_folder(tmp_path):
    """torch would leave its tensor as uninitialised memory."""
    whole = bytearray(_saved(tmp_path, "zip"))
    entry = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"/data/0"))
    whole[entry + 38] |= 0x10
    (tmp_path / "a.pt").write_bytes(whole)
    assert "marked as a folder" in refusal(tmp_path / "a.pt")


def test_a_record_shorter_than_its_pickle_says(tmp_path):
    """Mapped into memory, torch would read the next record's bytes as weights."""
    (tmp_path / "whole").write_bytes(_saved(tmp_path, "zip"))
    with (
        zipfile.ZipFile(tmp_path / "whole") as whole,
        zipfile.ZipFile(tmp_path / "short.pt", "w") as short,
    ):
        for name in whole.namelist():
            data = whole.read(name)
            short.writestr(name, data[:8] if name.endswith("data/0") else data)
    assert "damaged" in refusal(tmp_path / "short.pt")


def test_the_whole_i3d_checkpoint_in_its_published_layout(tmp_path):
    arrays = parity_kit.kit("i3d_rgb").checkpoint()
    public = {k: torch.from_numpy(v) for k, v in arrays.items() if "num_batches" not in k}
    save_as_pytorch_03(public, tmp_path / "model_rgb.pth")
    assert same(read_checkpoint(tmp_path / "model_rgb.pth"), public)
