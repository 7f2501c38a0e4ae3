"""Check that documents match the code: help, tables, links, options, code, transcripts, the spec's page."""

from __future__ import annotations

import ast
import dataclasses
import json
import re
import shlex
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx
import pytest
from click.testing import CliRunner

from make_video import make_video
from readme_parts import README, ROOT, commands, part, parts
from tiny import tiny_engine
from vfx_engines import EngineSpec, SpecError, read_spec
from vfx_engines.onnx_file import embed_spec
from vfx_engines.spec import Plan, Text

PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "engines/*.md", "export/*.md", "runtime/*.md", "benchmarks/*.md")
    for path in ROOT.glob(pattern)
)
SPEC_PAGE = ROOT / "docs" / "spec.md"

OTHERS_OPTIONS = {
    *("--index-url", "--extra-index-url", "--times"),
    *("--gpus", "--model-repository", "--model-control-mode"),
    *(
        "--job-name",
        "--array",
        "--cpus-per-task",
        "--gpus-per-task",
        "--mem",
        "--time",
        "--requeue",
        "--signal",
        "--wrap",
    ),
}
"""Options of other people's commands, and of scripts/, that the documents mention."""


def page_id(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[str]:
    """The contents of a page's fenced blocks in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def prose(path: Path) -> str:
    """A page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)


def sections(path: Path) -> dict[str, str]:
    """The text below each heading, by the heading's anchor on GitHub."""
    found: dict[str, str] = {}
    for match in re.finditer(r"^#+ ([^\n]+)\n(.*?)(?=^#+ |\Z)", prose(path), re.DOTALL | re.MULTILINE):
        anchor = re.sub(r"[^\w\- ]", "", match[1].lower()).replace(" ", "-")
        found[anchor] = match[2]
    return found


# The generated parts of README.md


@pytest.mark.parametrize("name", ["models", *(f"help {name}" for name in commands())])
def test_parts_of_the_readme_are_what_the_code_says(name: str) -> None:
    pytest.importorskip("torch")  # the catalogue holds networks
    written = part(README.read_text("utf-8"), name)[1]
    assert written == parts()[name], "run scripts/help"


# Links, files and options exist


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_links_resolve(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(path)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        there = (path.parent / file).resolve() if file else path
        assert there.exists(), f"{page_id(path)}: {target}"
        if anchor:
            assert anchor in sections(there), f"{page_id(path)}: {target}: {sorted(sections(there))}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_files_that_are_named_exist(path: Path) -> None:
    folders = ("scripts", "tests", "benchmarks", "docs", "docker", "engines", "export", "runtime", ".ci")
    for name in re.findall(rf"`((?:{'|'.join(map(re.escape, folders))})/[\w./-]*)`", prose(path)):
        assert (ROOT / name).exists(), f"{page_id(path)}: {name}"


@pytest.mark.parametrize("path", PAGES, ids=page_id)
def test_options_that_are_named_exist(path: Path) -> None:
    known = {option for command in commands().values() for item in command.params for option in item.opts}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", path.read_text("utf-8")))
    assert named - known <= OTHERS_OPTIONS | {"--help", "--version"}


def command_lines() -> Iterator[tuple[str, str]]:
    """The page and text of every line that calls one of the commands."""
    for path in PAGES:
        text = re.sub(r"^```text\n.*?^```", "", path.read_text("utf-8"), flags=re.DOTALL | re.MULTILINE)
        code = "\n".join(re.findall(r"^(?: {4}|\$ )(.+)$", text, re.MULTILINE))
        for line in code.replace("\\\n", " ").splitlines():
            if line.split()[0] in commands():
                yield page_id(path), line.partition(" #")[0]


@pytest.mark.parametrize(("page", "line"), list(command_lines()))
def test_command_lines_are_accepted(page: str, line: str) -> None:
    name, *arguments = shlex.split(line)
    commands()[name].make_context(name, arguments).close()


# Code in documents runs


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files that the documents use. Its ``i3d.onnx`` is the tiny engine, renamed."""
    monkeypatch.chdir(tmp_path)
    engine = tiny_engine(tmp_path / "i3d.onnx", lead=1)
    spec = read_spec(engine)
    model = onnx.load(engine)
    for node in model.graph.node:
        node.output[:] = ["rgb" if name == "features" else name for name in node.output]
    model.graph.output[0].name = "rgb"
    (output,) = spec.outputs
    weights = dataclasses.replace(spec.weights, file="random")
    named = dataclasses.replace(output, name="rgb")
    embed_spec(model, dataclasses.replace(spec, model="i3d", weights=weights, outputs=(named,)))
    onnx.save(model, engine)
    for name in ("a.mp4", "clips/b.mp4", "v_GGSY1Qvo990.mp4", "v_ZNVhz7ctTq0.mp4"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        make_video(tmp_path / name, frames=9)
    make_video(tmp_path / "v_GGSY1Qvo990_22f.mp4", frames=2)
    make_video(tmp_path / "v_GGSY1Qvo990_40f20.mp4", width=96, height=80, frames=40, fps=20)
    (tmp_path / "list.txt").write_text("a.mp4\n")
    return tmp_path


def run_python(code: str, where: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "__docs__"}
    exec(compile(code, where, "exec"), names)
    return names


def run_line(line: str) -> str:
    """Run a command; returns what it prints on both streams."""
    name, *arguments = shlex.split(line)
    return CliRunner(env={"COLUMNS": "200"}).invoke(commands()[name], arguments, prog_name=name).output


def shape(text: str) -> list[str]:
    """A transcript without the parts that differ between machines and videos."""
    text = re.sub(r"/\S*/", "/", text)
    text = re.sub(r"\d[\d.,]*(e[+-]?\d+)?", "0", text)
    text = re.sub(r"\b[bf][fp]0\b", "fp", text)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    # In rows of logits, the order of classes depends on the video.
    return [re.sub(r"s: .*", "s: ...", line) if re.match(r"\S+ 0-0 s: ", line) else line for line in lines]


def test_python_of_the_readme_runs(workplace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_line("vfx-run --engine i3d.onnx a.mp4")
    reading, extracting, engine = blocks(README, "python")
    names = run_python(reading, "README.md, reading")
    assert names["rows"].shape == (2, 4)
    assert names["meta"]["spec"]["model"] == "i3d"
    assert "Features(rgb: [2, 4]; 2 rows, 25 fps)" in capsys.readouterr().out
    run_python(extracting, "README.md, extracting")
    assert {path.name for path in Path("features").iterdir()} == {"a.npz", "b.npz"}
    said = capsys.readouterr().out
    assert "new" in said
    assert "error" not in said
    assert run_python(engine, "README.md, engine")["rows"].shape == (2, 4)


def test_python_of_the_rooms_runs(workplace: Path) -> None:
    rows = [
        run_python(code, page_id(path)).get("rows")
        for room in ("engines", "export", "runtime")
        for path in (ROOT / room).glob("*.md")
        for code in blocks(path, "python")
    ]
    assert [row.shape for row in rows if row is not None] == [(1, 4)]


def test_python_of_the_page_on_corpora_runs(workplace: Path) -> None:
    run_line("vfx-run --engine i3d.onnx a.mp4 clips --format parquet")
    (code,) = blocks(ROOT / "docs" / "many.md", "python")
    assert run_python(code, "docs/many.md")["rows"].shape == (2, 4)


def test_transcript_of_the_readme(workplace: Path) -> None:
    _, transcript = blocks(README, "console")
    line, _, said = transcript.removeprefix("$ ").partition("\n")
    # Short videos may finish in another order; everything else must be the same.
    assert sorted(shape(run_line(line))) == sorted(shape(said))


def test_own_module_of_the_spec_page(workplace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    monkeypatch.syspath_prepend(workplace)
    reading, factory, exporting = blocks(SPEC_PAGE, "python")
    Path("motion.py").write_text(factory)
    Path("spec.json").write_text(blocks(SPEC_PAGE, "json")[-1])
    (transcript,) = blocks(SPEC_PAGE, "console")
    for step in transcript.removeprefix("$ ").split("\n$ "):
        line, _, said = step.partition("\n")
        assert shape(run_line(line)) == shape(said)
    spec = run_python(exporting, "docs/spec.md, exporting")["spec"]
    assert spec == read_spec(Path("motion.onnx"))
    assert spec.proof.error < spec.proof.tolerance
    run_python(reading, "docs/spec.md, reading")


def test_every_python_block_is_run() -> None:
    """Blocks may only be on pages that the tests above cover."""
    taken = {
        "README.md",
        "docs/many.md",
        "docs/spec.md",
        "engines/README.md",
        "export/README.md",
        "runtime/README.md",
    }
    assert {page_id(path) for path in PAGES if blocks(path, "python")} <= taken


# The spec's page


def objects() -> dict[str, type]:
    """The name and class of every kind of object in a spec."""
    found: dict[str, type] = {}
    queue: list[type] = [EngineSpec]
    while queue:
        kind = queue.pop(0)
        found[kind.__name__] = kind
        hints = typing.get_type_hints(kind)
        for hint in hints.values():
            for item in (hint, *typing.get_args(hint)):
                if dataclasses.is_dataclass(item) and isinstance(item, type):
                    queue.append(item)
    return found


def table(kind: type) -> list[tuple[str, str, str, str]]:
    """The rows of the table below an object's heading: field, type, default, meaning."""
    section = sections(SPEC_PAGE)[kind.__name__.lower()]
    rows = []
    for line in section.splitlines():
        if line.startswith("| `"):
            field, of, default, meaning = (cell.strip() for cell in line.strip("|").split("|"))
            rows.append((field.strip("`"), of, default.strip("`"), meaning))
    return rows


@pytest.mark.parametrize("kind", objects().values(), ids=lambda kind: kind.__name__)
def test_every_field_is_described(kind: Any) -> None:
    rows = table(kind)
    fields = dataclasses.fields(kind)
    assert [name for name, *_ in rows] == [field.name for field in fields]
    hints = typing.get_type_hints(kind)
    for field, (name, of, default, meaning) in zip(fields, rows, strict=True):
        has_default = field.default is not dataclasses.MISSING and name != "spec_version"
        assert default == (json.dumps(field.default) if has_default else ""), name
        assert meaning or typing.get_origin(hints[name]) is typing.Literal, name
        for choice in _choices(hints[name]):
            assert f'`"{choice}"`' in of, f"{name}: {choice}"
        assert ("null" in of) == (type(None) in typing.get_args(hints[name])), name


def _choices(hint: Any) -> list[str]:
    if typing.get_origin(hint) is typing.Literal:
        return list(typing.get_args(hint))
    return []


def whole_spec(kind: type = EngineSpec) -> dict[str, Any]:
    """The page's example with its plan; or, for `Text`, with its text part."""
    plan, text, spec, _ = (json.loads(block) for block in blocks(SPEC_PAGE, "json"))
    if kind is not Text:
        return {**spec, "plan": plan}
    taken = {"name": "tokens", "modality": "text", "dtype": "int32", "shape": ["batch", 77]}
    return {**spec, "text": text, "input": taken}


def test_the_examples_are_specs() -> None:
    *_, whole, own = blocks(SPEC_PAGE, "json")
    assert EngineSpec.from_json(own).outputs[1].labels == ("still", "slow", "fast")
    spec = EngineSpec.from_json(whole)
    assert json.loads(spec.to_json()) == json.loads(whole), "a field is left out"
    assert isinstance(EngineSpec.from_json(json.dumps(whole_spec())).plan, Plan)


@pytest.mark.parametrize("kind", objects().values(), ids=lambda kind: kind.__name__)
def test_fields_without_default_must_be_there(kind: type) -> None:
    for name, _, default, _ in table(kind):
        spec = whole_spec(kind)
        for found in _objects_of(spec, kind):
            del found[name]
        if default:
            EngineSpec.from_json(json.dumps(spec))
        else:
            with pytest.raises(SpecError):
                EngineSpec.from_json(json.dumps(spec))


def _objects_of(spec: dict[str, Any], kind: type) -> list[dict[str, Any]]:
    names = {field.name for field in dataclasses.fields(typing.cast(Any, kind))}
    found, queue = [], [spec]
    while queue:
        item = queue.pop()
        if set(item) == names:
            found.append(item)
        for value in item.values():
            nested = value if isinstance(value, list) else [value]
            queue += [entry for entry in nested if isinstance(entry, dict)]
    assert found, kind
    return found


def test_what_export_fills_in_is_marked() -> None:
    """Fields marked "(export)" are those that `export_module` replaces, according to its source."""
    tree = ast.parse((ROOT / "export/vfx_export/exporting.py").read_text("utf-8"))
    (function,) = (
        node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "export_module"
    )
    replaced = {
        keyword.arg
        for call in ast.walk(function)
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "dataclasses.replace"
        for keyword in call.keywords
    }
    marked = {name for name, _, _, meaning in table(EngineSpec) if meaning.endswith("(export)")}
    assert marked == replaced
