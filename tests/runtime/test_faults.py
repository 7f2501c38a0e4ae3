"""Every fault once: results are right or failures are named, and the next run completes the rest.

docs/reliability.md has the results of many tries.
"""

from __future__ import annotations

import ast
import random
from pathlib import Path

import pytest

from fault_kit import Trial, Work, contents, judge, make_work
from faults import FAULTS, thousand
from reliability import DOCUMENT, MANY
from run_kit import failures

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Work:
    return make_work(tmp_path_factory.mktemp("work") / "work")


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_lost(work: Work, tmp_path: Path, fault: str) -> None:
    trial = Trial(work, tmp_path / "trial", random.Random(fault))
    ended = FAULTS[fault](trial)
    outcome = judge(trial, ended)

    assert not outcome.why, f"{outcome.why}\n{ended}"
    assert outcome.lost == 0


def test_a_thousand_videos_of_which_a_hundred_are_broken(tmp_path: Path) -> None:
    ended, good, broken = thousand(tmp_path)

    assert (len(good), len(broken)) == (900, 100)
    assert ended.code == 1, ended.said[-2000:]
    assert "Traceback" not in ended.said
    assert "internal error" not in ended.said
    assert contents(tmp_path / "out").keys() == {f"{name}.npz" for name in good} | {"failures.jsonl"}
    assert failures(tmp_path / "out").keys() == broken


def test_the_table_has_every_fault_and_no_loss() -> None:
    rows = [
        line.strip("|").split("|") for line in DOCUMENT.read_text("utf-8").splitlines() if line[:1] == "|"
    ]
    lost = {row[0].strip(): row[-1].strip() for row in rows if len(row) == 7}

    for fault in (*FAULTS, MANY):
        assert lost[fault] == "0"


@pytest.mark.parametrize("room", ["runtime", "engines"])
def test_no_wall_clock_is_read(room: str) -> None:
    """Except for the dates that vfx-bench and --report print."""
    clocks = {"time", "time_ns", "gmtime", "localtime", "ctime", "strftime", "now", "utcnow", "today"}
    found = [
        (path.name, node.attr)
        for path in sorted((ROOT / room).rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("time", "datetime", "date")
        and node.attr in clocks
    ]
    dates = [("measuring.py", "strftime"), ("recording.py", "strftime")]
    assert found == (dates if room == "runtime" else [])
