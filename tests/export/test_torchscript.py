"""TorchScript archives: real ones, damaged ones, and ones that would run something."""

import os
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from torchscript_files import save_torchscript
from vfx_engines.errors import CheckpointError
from vfx_export.checkpoints import read_checkpoint

STATE = {
    "logit_scale": torch.tensor(4.6),
    "visual.conv1.weight": torch.arange(24.0).reshape(2, 3, 2, 2).half(),
    "visual.transformer.resblocks.0.attn.in_proj_weight": torch.arange(6.0).reshape(2, 3).t(),
    "visual.transformer.resblocks.1.attn.in_proj_weight": torch.full((3, 2), 0.5, dtype=torch.bfloat16),
    "input_resolution": torch.tensor(224),
}


def archive(folder: Path) -> Path:
    save_torchscript(STATE, folder / "clip.pt")
    return folder / "clip.pt"


def refusal(path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_checkpoint(path)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    return text


def with_records(path: Path, **records: bytes) -> Path:
    """A copy of the archive, whole and with right checksums, in which records hold other bytes."""
    out = path.with_name("changed.pt")
    with zipfile.ZipFile(path) as whole, zipfile.ZipFile(out, "w") as changed:
        for name in whole.namelist():
            changed.writestr(name, records.get(name.partition("/")[2], whole.read(name)))
    return out


def test_tensors_are_those_of_its_module(tmp_path: Path) -> None:
    found = read_checkpoint(archive(tmp_path))
    assert set(found) == set(STATE)
    for key, value in STATE.items():
        assert found[key].dtype == value.dtype
        assert torch.equal(found[key], value)


def test_lists_and_dicts_beside_the_tensors_are_passed_over(tmp_path: Path) -> None:
    class Rich(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2))
            self.sizes, self.by_name, self.extra = [1, 2], {"a": 1.5}, [torch.ones(3)]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.sizes[0] * self.by_name["a"] + self.extra[0].sum()

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Rich()).save(str(tmp_path / "rich.pt"))
    assert list(read_checkpoint(tmp_path / "rich.pt")) == ["weight"]


@pytest.mark.parametrize(
    "asked",
    [
        f"{os.mkdir.__module__}\nmkdir",
        "builtins\neval",
        "__builtin__\ngetattr",
        "torch\nload",
        "torch.serialization\nload",
        "torch.jit._pickle\nrestore_type_tag.__globals__",
        "torch.jit._pickle\n__builtins__",
        "collections\nOrderedDict.fromkeys",
        "__torch__x\nM",
    ],
    ids=lambda asked: asked.replace("\n", "."),
)
def test_nothing_in_a_hostile_archive_is_run(tmp_path: Path, asked: str) -> None:
    marker = tmp_path / "ran"
    argument = str(marker).encode()
    # What GLOBAL names is called with the marker's path.
    data = b"\x80\x02c" + asked.encode() + b"\nX" + len(argument).to_bytes(4, "little") + argument + b"\x85R."
    text = refusal(with_records(archive(tmp_path), **{"data.pkl": data}))
    name = asked.replace("\n", ".")
    assert f"unpickling it would call {name}: refused, and nothing in it was run" in text
    assert not marker.exists()


def test_code_in_the_archive_is_not_read(tmp_path: Path) -> None:
    path = archive(tmp_path)
    with zipfile.ZipFile(path) as whole:
        code = [name.partition("/")[2] for name in whole.namelist() if "/code/" in name]
    assert code
    changed = with_records(path, **{name: b"import os; os.abort()" for name in code})
    assert set(read_checkpoint(changed)) == set(STATE)


def test_what_a_pickle_does_to_its_classes_ends_with_it(tmp_path: Path) -> None:
    """BUILD with a pair sets attributes, here of the class that stands for all modules."""
    data = b"\x80\x02c__torch__\nM\n(N}X\x0b\x00\x00\x00conv_weightK\x01stb."
    assert "no tensors" in refusal(with_records(archive(tmp_path), **{"data.pkl": data}))
    assert set(read_checkpoint(archive(tmp_path))) == set(STATE)


def test_a_module_that_holds_itself_ends(tmp_path: Path) -> None:
    data = b"\x80\x02c__torch__\nM\n)\x81q\x00}X\x04\x00\x00\x00selfh\x00sb."
    assert "no tensors" in refusal(with_records(archive(tmp_path), **{"data.pkl": data}))


def test_records_of_another_size_are_damage(tmp_path: Path) -> None:
    path = archive(tmp_path)
    for data in (b"", b"\0\0", bytes(1000)):
        assert "bytes, its pickle says" in refusal(with_records(path, **{"data/0": data}))


def test_a_tensor_that_reaches_beyond_its_record_is_damage(tmp_path: Path) -> None:
    path = archive(tmp_path)
    with zipfile.ZipFile(path) as whole:
        data = whole.read("clip/data.pkl")
    # The sizes 2, 3, 2, 2 of the convolution, with 9 for the 3.
    sizes = b"(K\x02K\x03K\x02K\x02t"
    assert sizes in data
    changed = with_records(path, **{"data.pkl": data.replace(sizes, b"(K\x02K\x09K\x02K\x02t")})
    assert "damaged TorchScript archive" in refusal(changed)


def test_every_truncation_is_an_error(tmp_path: Path) -> None:
    whole = archive(tmp_path).read_bytes()
    for length in range(5, len(whole), len(whole) // 40):
        (tmp_path / "cut.pt").write_bytes(whole[:length])
        refusal(tmp_path / "cut.pt")


def test_every_pickle_that_is_cut_is_an_error(tmp_path: Path) -> None:
    path = archive(tmp_path)
    with zipfile.ZipFile(path) as whole:
        data = whole.read("clip/data.pkl")
    for length in range(0, len(data), 13):
        refusal(with_records(path, **{"data.pkl": data[:length]}))
