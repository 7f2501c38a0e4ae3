"""A ``.pyth`` file says how it was trained, and the row must say the same."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from vfx_engines.errors import CheckpointError
from vfx_export.catalogue import find
from vfx_export.checkpoints import read_with_config
from vfx_export.exporting import export_model
from vfx_export.pyslowfast_config import check_config, options

# As yacs dumps it, with PyYAML from 5.1 on and before.
BLOCKS = """\
BN:
  NUM_SPLITS: 1
DATA:
  MEAN:
  - 0.45
  - 0.45
  - 0.45
  NUM_FRAMES: 32
  PATH_PREFIX: ''
  SAMPLING_RATE: 2
  STD:
  - 0.225
  - 0.225
  - 0.225
MODEL:
  ARCH: slowfast
MULTIGRID:
  SHORT_CYCLE: false
NONLOCAL:
  LOCATION:
  - - []
  - - - 6
      - 13
OUTPUT_DIR: .
SLOWFAST:
  ALPHA: 4
"""
FLOW = """\
DATA:
  MEAN: [0.45, 0.45, 0.45]
  NUM_FRAMES: 32
  SAMPLING_RATE: 2
  STD: [0.225, 0.225, 0.225]
MODEL: {ARCH: slowfast}
SLOWFAST:
  ALPHA: 4
"""


@pytest.mark.parametrize("text", [BLOCKS, FLOW])
def test_options_are_read_by_dotted_name(text: str) -> None:
    found = options(text)
    assert (found["DATA.NUM_FRAMES"], found["SLOWFAST.ALPHA"]) == (32, 4)
    assert found["DATA.MEAN"] == (0.45, 0.45, 0.45)
    assert found["DATA.STD"] == (0.225, 0.225, 0.225)


@pytest.mark.parametrize("text", [BLOCKS, FLOW, "", "not: [a\n  - config", "\0- x: 1\n" * 3])
def test_a_config_of_the_row_or_of_nothing_fits(text: str) -> None:
    row = find("slowfast_8x8_r50")
    check_config(text, row.config, model=row.name, file="a.pyth")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("slowfast_4x16_r50", "SLOWFAST.ALPHA 4 and not 8"),
        ("slowfast_16x8_r50_charades", "DATA.NUM_FRAMES 32 and not 64"),
        ("slowfast_8x8_r50_stepwise_multigrid", "MULTIGRID.SHORT_CYCLE false and not true"),
        ("c2d_nopool_8x8_r50", "MODEL.ARCH slowfast and not 2d or slow_c2d or c2d_nopool"),
    ],
)
def test_a_config_of_another_row_is_refused(name: str, says: str) -> None:
    row = find(name)
    with pytest.raises(CheckpointError, match=rf"^a.pyth does not fit {name}: .*{says}") as caught:
        check_config(BLOCKS, row.config, model=row.name, file="a.pyth")
    assert len(str(caught.value).splitlines()) == 1


def test_other_colours_are_refused() -> None:
    row = find("slowfast_8x8_r50")
    text = BLOCKS.replace("- 0.45", "- 0.5", 1)
    with pytest.raises(CheckpointError, match=r"DATA.MEAN \[0.5, 0.45, 0.45\] and not \[0.45, 0.45, 0.45\]"):
        check_config(text, row.config, model=row.name, file="a.pyth")


def test_the_config_of_a_file_is_looked_at_before_its_tensors(tmp_path: Path) -> None:
    """Slow 4x16 and 8x8 have the same keys and shapes."""
    path = tmp_path / "SLOW_8x8_R50.pyth"
    cfg = "DATA:\n  NUM_FRAMES: 8\n  SAMPLING_RATE: 8\nMODEL:\n  ARCH: slow\n"
    torch.save({"epoch": 1, "model_state": {"a": torch.ones(1)}, "cfg": cfg}, path)
    assert read_with_config(path)[1] == cfg
    with pytest.raises(CheckpointError, match=r"NUM_FRAMES 8 and not 4, DATA.SAMPLING_RATE 8 and not 16"):
        export_model(find("slow_4x16_r50"), tmp_path / "a.onnx", checkpoint=path)
    with pytest.raises(CheckpointError, match=r"does not fit slow_8x8_r50: 267 missing"):
        export_model(find("slow_8x8_r50"), tmp_path / "a.onnx", checkpoint=path)
