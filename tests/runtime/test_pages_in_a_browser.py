"""The pages of a real run in headless Chromium: wide and narrow, light and dark, by keyboard, and printed."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from browser import Browser, chromium
from conftest import lacking
from make_video import make_video
from run_kit import vfx_run
from tiny import tiny_engine
from vfx_runtime.show import main

BOXES = """(() => {
  const seen = (e) => { const b = e.getBoundingClientRect(); return [b.left, b.top, b.right, b.bottom]; };
  const all = (s) => [...document.querySelectorAll(s)].map(seen);
  return {
    blocks: all("header, .strip, section > :is(figure, h2, .scroll, .facts, pre)"),
    pictures: all(".strip li"),
    plots: all(".plot"), images: all("img"), lines: all(".drawing .line"),
    texts: [...document.querySelectorAll(".drawing")].map((d) => [...d.querySelectorAll("text")].map(seen)),
    width: [document.documentElement.scrollWidth, document.documentElement.clientWidth],
    colours: ["backgroundColor", "color"].map((c) => getComputedStyle(document.querySelector("h1"))[c]
      + getComputedStyle(document.documentElement)[c]),
  };
})()"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    program = chromium()
    if program is None:
        lacking("chromium", "no Chromium: scripts/chromium installs it")
    with Browser(program) as found:
        yield found


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The pages of a run over two good videos and a damaged one."""
    from click.testing import CliRunner

    folder = tmp_path_factory.mktemp("pages")
    tiny_engine(folder / "tiny.onnx", labels=True)
    make_video(folder / "a.mp4", width=160, height=120, frames=150)
    make_video(folder / "b.mp4", frames=40)
    (folder / "bad <b>.mp4").write_bytes(b"no video")
    report = folder / "run.html"
    inputs = [folder / name for name in ("a.mp4", "b.mp4", "bad <b>.mp4")]
    done = vfx_run("--engine", folder / "tiny.onnx", *inputs, "--output", folder / "f", "--report", report)
    assert done.exit_code == 1
    arguments = [str(folder / "f" / "a.npz"), "--video", str(folder / "a.mp4")]
    assert CliRunner().invoke(main, arguments).exit_code == 0
    return {"features": folder / "f" / "a.html", "run": report}


def overlap(boxes: list[list[float]]) -> list[Any]:
    """Pairs of boxes that overlap by more than a pixel."""
    return [
        (one, other)
        for one, other in itertools.combinations(boxes, 2)
        if min(one[2], other[2]) - max(one[0], other[0]) > 1
        and min(one[3], other[3]) - max(one[1], other[1]) > 1
    ]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("name", ["features", "run"])
def test_a_page_is_laid_out(
    browser: Browser, pages: dict[str, Path], tmp_path: Path, name: str, width: int, scheme: str
) -> None:
    browser.open(pages[name], width, 900, scheme)
    found = browser.ask(BOXES)
    picture = browser.picture(tmp_path / "page.png").astype(int)
    assert browser.complaints == []
    assert found["width"] == [width, width], "something is wider than the window"
    assert overlap(found["blocks"]) == []
    assert overlap(found["pictures"]) == []
    for texts in found["texts"]:
        assert overlap(texts) == []
        assert all(left >= 0 and right <= width for left, _, right, _ in texts)
    background = picture[2, 2].mean()
    assert (background > 200) if scheme == "light" else (background < 60)
    assert len(found["plots"]) == 3
    for left, top, right, bottom in found["plots"]:
        assert right - left > 200
        shown = picture[round(top) : round(bottom), round(left) : round(right)]
        assert (np.abs(shown - picture[2, 2]).max(-1) > 60).mean() > 0.003, "a chart is blank"
    assert all(right - left > 100 for left, _, right, _ in found["lines"])
    if name == "features":
        assert len(found["pictures"]) == 12
        for left, top, right, bottom in found["images"][:12]:
            shown = picture[round(top) : round(bottom), round(left) : round(right)]
            assert shown.std((0, 1)).min() > 20, "a thumbnail is blank"
            # The quadrants of tests/make_video.py: red at the top left, green at the top right.
            red, green = shown[4, 6], shown[4, -6]
            assert red[0] > red[1] or red.min() > 180
            assert green[1] > green[0] or green.min() > 180


def test_values_are_read_by_pointer_and_by_keys(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["features"], 1280, 900)
    said = "[...document.querySelectorAll('.readout')].map((e) => e.textContent)"
    assert browser.ask(said) == ["", "", ""]
    left, top, right, bottom = browser.ask(BOXES)["plots"][0]
    browser.move(left + 1, (top + bottom) / 2)
    assert browser.ask(said)[0].startswith("row 0, 0.00–0.16 s: ")
    browser.move(right - 1, (top + bottom) / 2)
    assert browser.ask(said)[0].startswith("row 36, ")
    browser.ask("document.querySelector('.matrix').focus()")
    assert browser.ask(said)[1] == "row 0, 0.00–0.16 s and row 0, 0.00–0.16 s: 1.000"
    browser.key("ArrowRight")
    browser.key("ArrowDown")
    browser.key("ArrowDown")
    assert browser.ask(said)[1].startswith("row 2, 0.32–0.48 s and row 1, 0.16–0.32 s: ")
    assert browser.complaints == []


def test_every_chart_is_reached_by_tab(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["features"], 1280, 900)
    reached = []
    for _ in range(12):
        browser.key("Tab")
        reached.append(browser.ask("document.activeElement.dataset.kind || document.activeElement.tagName"))
    assert reached.count("line") == 2
    assert "matrix" in reached
    assert "SUMMARY" in reached


@pytest.mark.parametrize("name", ["features", "run"])
def test_without_scripts_all_is_there_but_the_reading(
    browser: Browser, pages: dict[str, Path], name: str
) -> None:
    browser.open(pages[name], 1280, 900, scripts=False)
    picture = browser.picture().astype(int)
    browser._call("Emulation.setScriptExecutionDisabled", value=False)
    assert (np.abs(picture - picture[2, 2]).max(-1) > 60).mean() > 0.01
    assert browser.complaints == []


def test_every_picture_is_described(browser: Browser, pages: dict[str, Path]) -> None:
    for page in pages.values():
        browser.open(page, 1280, 900)
        missing = "[...document.querySelectorAll('img, svg[role=img]')]"
        assert browser.ask(f"{missing}.filter((e) => !(e.alt || e.getAttribute('aria-label'))).length") == 0
        assert browser.ask("document.querySelectorAll('h1').length") == 1
        assert browser.ask("document.documentElement.lang") == "en"


def test_it_prints(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["features"], 1280, 900, "dark")
    assert browser.pdf().startswith(b"%PDF")


def test_the_report_says_what_happened(browser: Browser, pages: dict[str, Path]) -> None:
    browser.open(pages["run"], 1280, 900)
    text = browser.ask("document.body.innerText")
    assert "bad <b>.mp4" in text
    assert "not a video file" in text
    assert "OpenVINO" in text
    head = browser.ask("[...document.querySelectorAll('.headline div')].map((d) => d.innerText.split('\\n'))")
    numbers = {label: value for value, label in (sorted(pair, key=lambda t: t[0].isalpha()) for pair in head)}
    assert numbers["videos done"] == "2"
    assert numbers["failed"] == "1"
    assert numbers["windows"] == "47"
    stages = browser.ask(
        "[...document.querySelectorAll('#stages ~ .scroll tbody th')].map((e) => e.innerText)"
    )
    assert [stage.split()[0] for stage in stages[:5]] == ["decode", "resize", "gather", "verify", "write"]
    assert json.dumps(stages).count("engine") >= 1
