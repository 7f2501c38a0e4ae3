"""The command `vfx-export` as it is called: what it prints where, its exit codes, and what it leaves."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result

from conftest import lacking
from own_modules import FRAMES, SIZE, Own, own_row, own_spec
from tolerances import PARITY
from triton_server import INSTALLED, TritonServer
from vfx_engines import EngineError, open_engine, read_spec
from vfx_engines.tensorrt_api import is_installed
from vfx_export import catalogue
from vfx_export.cli import main

COMMAND = Path(sys.executable).with_name("vfx-export")
OWN_FILE = Path(__file__).parents[1] / "own_modules.py"


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> None:
    """The small network of these tests as a second row: I3D takes ten seconds a turn."""
    monkeypatch.setattr(catalogue, "CATALOGUE", (*catalogue.CATALOGUE, own_row()))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a search path that --module may add to."""
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("VFX_CACHE", str(tmp_path / "cache"))
    return folder


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    torch.save(Own().state_dict(), tmp_path / "own.pt")
    return tmp_path / "own.pt"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def refusal(folder: Path, code: int, *arguments: object) -> str:
    """The one line of a command that fails and leaves nothing."""
    before = sorted(folder.rglob("*"))
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert sorted(folder.rglob("*")) == before
    if not result.stderr.startswith("Usage: "):  # click's own
        assert result.stderr.startswith("vfx-export: ")
        assert result.stderr.removesuffix("\n").isprintable(), result.stderr
    return result.stderr


def computes_own(path: Path) -> bool:
    pixels = np.random.default_rng(1).integers(0, 256, (3, FRAMES, SIZE, SIZE, 3), np.uint8)
    with torch.no_grad():
        want = Own()(torch.from_numpy(pixels))[0].numpy()
    with open_engine(path) as engine:
        got = engine.run(pixels)["features"]
    return bool(np.linalg.norm(got - want) < PARITY[engine.precision] * np.linalg.norm(want))


def test_triton_gets_a_repository_and_serves_it(
    folder: Path, own: None, checkpoint: Path, tmp_path: Path
) -> None:
    command = (
        "--model",
        "own",
        "--checkpoint",
        checkpoint,
        "--triton",
        "models",
        "--batch",
        "1,2,4",
        "--head",
    )
    for version in (1, 2):
        result = run(*command, "--precision", "fp16" if version == 1 else "fp32")
        assert result.exit_code == 0, result.output
        assert result.stdout == f"models/own/{version}/model.onnx\n"
        assert computes_own(folder / "models" / "own" / str(version) / "model.onnx")
    left = {
        path.relative_to(folder / "models" / "own").as_posix() for path in folder.rglob("*") if path.is_file()
    }
    assert left == {"config.pbtxt", "logits_labels.txt", "1/model.onnx", "2/model.onnx"}
    pytest.importorskip("tritonclient.grpc")
    if not INSTALLED.exists():
        lacking("triton", "no Triton server is here: scripts/triton installs one")
    (tmp_path / "server").mkdir()
    with TritonServer(tmp_path / "server", folder / "models") as server:
        for protocol in ("grpc", "http"):
            assert computes_own(Path(server.address(protocol, "own")))
        with pytest.raises(EngineError, match="version 1"):
            read_spec(Path(f"{server.address('grpc', 'own')}?version=1&tries=1"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--triton", "models", "--output", "here"), "--triton models says where to write"),
        (("--triton", "models", "--precision", "bf16"), "Triton takes fp16 or fp32"),
        (("--triton", "models", "--instances", "tpu"), "expected cpu, gpu"),
        (("--triton", "models", "--batch", "2,4,8"), "Triton may send one window alone"),
        (("--instances", "gpu"), "goes with --triton"),
        (("--triton", OWN_FILE), "this is a file"),
    ],
)
def test_what_triton_cannot_have_is_refused(
    folder: Path, own: None, checkpoint: Path, arguments: tuple[object, ...], said: str
) -> None:
    assert said in refusal(folder, 2, "--model", "own", "--checkpoint", checkpoint, *arguments)


def test_help_needs_no_torch() -> None:
    code = "import sys; sys.modules['torch'] = None; from vfx_export.cli import main; main(['--help'])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    for option in main.params:
        assert all(name in done.stdout for name in option.opts)


def test_help_is_not_kept_waiting() -> None:
    code = (
        "import sys; from vfx_export.cli import main; from vfx_export import __all__\n"
        "slow = {'torch', 'onnx', 'openvino', 'onnxruntime'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], env=os.environ, check=True)


def test_without_torch_the_extra_is_named(folder: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = None; from vfx_export.cli import main; main(['--model', 'i3d'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=False
    )
    assert done.stderr == "vfx-export: vfx-export needs torch: pip install torch onnxscript safetensors\n"
    assert (done.returncode, done.stdout) == (2, "")


def test_the_list_is_a_table_and_json() -> None:
    rows = json.loads(run("--list", "--json").stdout)
    assert [row["model"] for row in rows] == [model.name for model in catalogue.CATALOGUE]
    i3d = rows[0]
    assert (i3d["model"], i3d["frames"], i3d["input"], i3d["length"]) == ("i3d", 64, "224x224", 1024)
    named = {row["model"]: row for row in rows}
    assert named["raft_sintel"]["length"] == named["pwc_sintel"]["length"] == "2xheightxwidth"
    assert (named["slow_8x8_r50"]["frames"], named["slow_8x8_r50"]["stride"]) == (8, 8)
    assert named["vggish"]["input"] == "audio"
    assert len(named["i3d_flow_raft"]["checkpoint"].split()) == 2
    for row in rows:
        assert all(row[key] for key in ("source", "licence", "frames", "step", "input", "output", "length"))
        assert all(url.startswith("https://") for url in row["checkpoint"].split())
    table = run("--list")
    assert table.exit_code == 0
    lines = table.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert lines[1].split() == ["i3d", "rgb", "1024", "64x1", "64", "224x224"]
    # A line for each model: nothing is cut or folded.
    assert [line.split()[0] for line in lines[1 : len(rows) + 1]] == [row["model"] for row in rows]
    assert "  non-commercial use only: pwc_sintel" in lines


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ([], "give --model NAME"),
        (["--model", "i3d", "--module", "a.py:b", "--spec", "a.json"], "give --model NAME"),
        (["--model", "i3"], "unknown model 'i3'; did you mean i3d?"),
        (["--model", "zzz"], "unknown model 'zzz'; available: i3d"),
        (["--model", "two\nlines"], r"unknown model 'two\nlines'"),
        (["--model", "i3d", "--checkpoint", "a.pt", "--random-weights"], "cannot be used together"),
        (["--model", "i3d", "--random-weights", "--frames", "9"], "i3d needs at least 10 frames"),
        (["--model", "i3d", "--frames", "9"], "i3d needs at least 10 frames"),
        (["--model", "i3d", "--frames", "many"], "not a valid integer"),
        (["--model", "i3d", "--precision", "int8"], "'int8' is not one of"),
        (["--model", "i3d", "--format", "plan"], "no TensorRT plan can be built here: "),
        (["--model", "i3d", "--output", "i3d.plan"], "or use --format onnx"),
        (["--model", "i3d", "--format", "onnx", "--output", "i3d.plan"], "expected a .onnx file or a folder"),
        (
            ["--model", "i3d", "--format", "onnx", "--batch", "1,2"],
            "--batch '1,2': expected N, or MIN,OPT,MAX",
        ),
        (["--model", "i3d", "--format", "onnx", "--level", "7"], "builder level 7: expected 0 to 5"),
        (
            ["--model", "i3d", "--format", "onnx", "--level", "3"],
            "--level applies to plans only, and this writes ONNX",
        ),
        (["--model", "i3d", "--workspace", "nan"], "--workspace nan: expected GiB, more than 0"),
        (["--model", "i3d", "--workspace", "-1"], "--workspace -1: expected GiB, more than 0"),
        (["--model", "i3d", "--device", "cpu"], "--device cpu: plans are built and inspected on a GPU"),
        (["--inspect", "i3d.plan", "--device", "cpu"], "--device cpu: plans are built and inspected on"),
        (["--model", "i3d", "--output", "i3d.onnx", "--batch", "4"], "--batch applies to plans only"),
        (
            ["--model", "i3d", "--format", "onnx", "--triton", "r", "--device", "cpu"],
            "--device applies to plans only",
        ),
        (["--model", "i3d", "--spec", "a.json"], "go together"),
        (["--model", "i3d", "--json"], "--json goes with --list"),
        (["--model", "i3d", "--text"], "--text: i3d has no text encoder"),
        (
            ["--model", "clip_rn50", "--text", "--head"],
            "--text takes --checkpoint, --precision and --output only",
        ),
        (["--model", "clip_rn50", "--text", "--format", "plan"], "and writes ONNX"),
        (
            ["--model", "clip_rn50", "--text", "--checkpoint", "a.pt", "--random-weights"],
            "--text takes one --checkpoint, or --random-weights",
        ),
        (["--model", "clip_rn50", "--vocabulary", "a.gz"], "--vocabulary goes with --text"),
        (["--module", "a.py:b", "--spec", "a.json", "--text"], "it brings its own weights"),
        (["--module", "a.py:b"], "go together"),
        (["--model", "i3d", "--exact-zeros"], "--exact-zeros: i3d does not have it"),
        (["--model", "raft_sintel", "--resize", "squash"], "raft_sintel has no size to bring frames to"),
        (
            ["--model", "i3d", "--resize", "short:256"],
            "takes frames of one size, which its row says, or squash",
        ),
        (["--model", "raft_sintel", "--resize", "wide"], "expected short:PIXELS, long:PIXELS or squash"),
        (["--module", "a.py:b", "--spec", "a.json", "--head"], "it brings its own weights"),
        (["--module", "a.py:b", "--spec", "a.json", "--exact-zeros"], "it brings its own weights"),
        (["--module", "a.py:b", "--spec", "a.json", "--checkpoint", "a.pt"], "it brings its own weights"),
        (["--module", "a.py:b", "--spec", "none.json"], "--spec none.json: No such file"),
        (["--module", "a.py:b", "--spec", "."], "--spec .: Is a directory"),
        (["--model", "i3d", "--pool", "none"], "--pool none: i3d gives its published features alone"),
        (["--model", "slow_8x8_r50", "--pool", "max"], "'max' is not one of"),
        (["--model", "x3d_m", "--inflate", "--checkpoint", "a.pt"], "x3d_m cannot be made of a 2D ResNet's"),
        (["--model", "slow_8x8_r50", "--inflate"], "give the 2D weights with --checkpoint"),
        (["--module", "a.py:b", "--spec", "a.json", "--pool", "none"], "it brings its own weights"),
        (
            ["--model", "i3d", "--checkpoint", ""],
            "--checkpoint: found the empty text, expected a file or a URL",
        ),
        (["--model", "i3d", "--output", ""], "--output: found the empty text, expected a path"),
        (["--model", "i3d", "--triton", ""], "--triton: found the empty text, expected a path"),
        (
            ["--model", "i3d", "--output", "s3://b/a.onnx"],
            "--output: found a URL, expected a path of this mach",
        ),
        (["--inspect", ""], "--inspect: found the empty text, expected a path"),
        (["--what"], "No such option"),
    ],
)
def test_requests_that_cannot_be_met(folder: Path, arguments: list[str], says: str) -> None:
    assert says in refusal(folder, 2, *arguments)


def test_the_command_itself(folder: Path) -> None:
    done = subprocess.run(
        [COMMAND, "--model", "i3", "--random-weights"],
        capture_output=True,
        text=True,
        env=os.environ,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "vfx-export: unknown model 'i3'; did you mean i3d?\n"


@pytest.mark.parametrize(
    ("output", "written"),
    [
        (None, "own.onnx"),
        ("new/engines", "new/engines/own.onnx"),
        ("new/own_16.onnx", "new/own_16.onnx"),
        ("engine.v1", "engine.v1/own.onnx"),
        ("there.onnx", "there.onnx/own.onnx"),
        ("two\nlines [bold]", "two\nlines [bold]/own.onnx"),
    ],
)
def test_the_path_is_printed_and_nothing_else(
    folder: Path, own: None, checkpoint: Path, output: str | None, written: str
) -> None:
    (folder / "there.onnx").mkdir()
    where = [] if output is None else ["--output", output]
    result = run("--model", "own", "--checkpoint", checkpoint, *where)
    assert result.exit_code == 0, result.output
    assert result.stdout == (f"{written}\n" if written.isprintable() else f"{written!r}\n")
    assert [path for path in folder.rglob("*") if path.is_file()] == [folder / written]
    assert computes_own(folder / written)
    lines = result.stderr.splitlines()
    assert lines[0] == f"{Path(written).name}: own, fp32, 4 frames -> features [4], 0.0 MiB"
    assert lines[1].startswith("compared on 2 inputs with torch ")
    if output != "new/own_16.onnx" and not is_installed():
        # Nobody asked for ONNX: it is said why there is no plan.
        assert lines.pop(2).startswith("no TensorRT plan: TensorRT is not installed: install it from NVIDIA")
    assert len(lines) == 2


def test_options_reach_the_file(folder: Path, own: None, checkpoint: Path) -> None:
    options = ["--frames", "6", "--head", "--precision", "fp16", "--format", "onnx"]
    assert run("--model", "own", "--checkpoint", checkpoint, *options).exit_code == 0
    spec = read_spec(folder / "own.onnx")
    assert (spec.precision, spec.sampling.frames, len(spec.outputs)) == ("fp16", 6, 2)
    assert spec.weights.file == "own.pt"


def test_random_weights_are_said_loudly(folder: Path, own: None) -> None:
    result = run("--model", "own", "--random-weights")
    assert result.exit_code == 0
    assert result.stderr.startswith("RANDOM WEIGHTS: the features of this engine mean nothing\n")
    assert read_spec(folder / "own.onnx").weights.file == "random"


def test_checkpoints_that_do_not_fit(folder: Path, own: None, checkpoint: Path) -> None:
    assert "none.pt: cannot be read: No such file" in refusal(
        folder, 1, "--model", "own", "--checkpoint", "none.pt"
    )
    assert "cannot be read: Is a directory" in refusal(folder, 1, "--model", "own", "--checkpoint", ".")
    message = refusal(folder, 1, "--model", "i3d", "--checkpoint", checkpoint)
    assert f"{checkpoint} does not fit i3d" in message
    assert "it looks like own (100% of keys and shapes agree)" in message
    cut = checkpoint.with_name("two\nlines.pt")
    cut.write_bytes(checkpoint.read_bytes()[:1000])
    message = refusal(folder, 1, "--model", "own", "--checkpoint", cut)
    assert r"two\nlines.pt': truncated" in message


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A folder and the URL under which a server gives its files."""
    root = tmp_path / "served"
    root.mkdir()

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=root)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield root, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def test_a_checkpoint_may_be_a_url(
    folder: Path, own: None, checkpoint: Path, served: tuple[Path, str]
) -> None:
    root, url = served
    shutil.copy(checkpoint, root / "weights.pt")
    result = run("--model", "own", "--checkpoint", f"{url}/weights.pt?token=secret")
    assert result.exit_code == 0, result.output
    assert computes_own(folder / "own.onnx")
    assert read_spec(folder / "own.onnx").weights.file == "weights.pt"
    assert "secret" not in (folder / "own.onnx").read_text("latin-1")
    (folder / "own.onnx").unlink()
    message = refusal(folder, 1, "--model", "own", "--checkpoint", f"{url}/none.pt")
    assert "HTTP 404" in message


def test_the_published_weights_are_fetched_by_name(
    folder: Path, monkeypatch: pytest.MonkeyPatch, checkpoint: Path, served: tuple[Path, str]
) -> None:
    root, url = served
    shutil.copy(checkpoint, root / "published.pt")
    row = own_row(f"{url}/published.pt")
    monkeypatch.setattr(catalogue, "CATALOGUE", (row,))
    assert run("--model", "own").exit_code == 0
    assert computes_own(folder / "own.onnx")
    (folder / "own.onnx").unlink()
    other = replace(row, download=replace(row.download, sha256="0" * 64))
    monkeypatch.setattr(catalogue, "CATALOGUE", (other,))
    message = refusal(folder, 1, "--model", "own")
    assert "it is not the published file" in message


@pytest.fixture
def spec_file(tmp_path: Path) -> Path:
    (tmp_path / "own.json").write_text(own_spec().to_json())
    return tmp_path / "own.json"


@pytest.mark.parametrize("precision", [None, "bf16"])
def test_a_module_of_ones_own(folder: Path, spec_file: Path, precision: str | None) -> None:
    options = [] if precision is None else ["--precision", precision]
    result = run("--module", f"{OWN_FILE}:Own", "--spec", spec_file, *options)
    assert (result.exit_code, result.stdout) == (0, "own.onnx\n"), result.output
    assert computes_own(folder / "own.onnx")
    assert read_spec(folder / "own.onnx").precision == (precision or "fp32")


def test_a_module_file_may_hold_dataclasses_and_import_its_neighbours(folder: Path, spec_file: Path) -> None:
    (folder / "beside_the_module.py").write_text("from own_modules import Own\n")
    (folder / "with a space.py").write_text(
        "from __future__ import annotations\n"
        "from dataclasses import dataclass\n"
        "from beside_the_module import Own\n"
        "@dataclass\n"
        "class Settings:\n"
        "    size: int = 3\n"
        "def build():\n"
        "    return Own()\n"
    )
    result = run("--module", "with a space.py:build", "--spec", spec_file)
    assert result.exit_code == 0, result.output
    assert computes_own(folder / "own.onnx")


@pytest.mark.parametrize(
    ("text", "code", "says"),
    [
        ("def f(:\n", 1, "SyntaxError: invalid syntax"),
        ("import nothing_of_that_name\n", 1, "ModuleNotFoundError: No module named"),
        ("1 / 0\n", 1, "ZeroDivisionError: division by zero (--debug shows where)"),
        ("raise SystemExit('two\\nlines')\n", 1, "SystemExit: two"),
        ("def build():\n    raise ValueError\n", 1, "ValueError: ValueError"),
        ("def build():\n    return 3\n", 1, "build returned a int, no torch module"),
        ("def build(size):\n    return 3\n", 1, "TypeError: build() missing 1 required"),
        ("build = 3\n", 2, "the file has no function 'build'"),
        ("", 2, "the file has no function 'build'"),
        ("\0", 1, "null bytes"),
        ("from own_modules import Raises as build\n", 1, "own: the module does not run on uint8"),
    ],
)
def test_module_files_that_go_wrong(folder: Path, spec_file: Path, text: str, code: int, says: str) -> None:
    (folder / "mine.py").write_text(text)
    assert says in refusal(folder, code, "--module", "mine.py:build", "--spec", spec_file)


@pytest.mark.parametrize("module", ["mine.py", "none.py:build", "mine.txt:build", ":build", "", "two\nlines"])
def test_modules_that_are_not_there(folder: Path, spec_file: Path, module: str) -> None:
    (folder / "mine.txt").write_text("")
    assert "expected FILE.py:FACTORY" in refusal(folder, 2, "--module", module, "--spec", spec_file)


def test_a_spec_that_is_none(folder: Path) -> None:
    (folder / "bad.json").write_text("{")
    message = refusal(folder, 1, "--module", "a.py:b", "--spec", "bad.json")
    assert message.startswith("vfx-export: bad.json: spec is not JSON")
    newer = own_spec().to_json().replace('"spec_version": 1', '"spec_version": 9')
    (folder / "newer.json").write_text(newer)
    assert "spec version 9 is newer than 1" in refusal(
        folder, 1, "--module", "a.py:b", "--spec", "newer.json"
    )


def test_debug_shows_where(folder: Path, spec_file: Path) -> None:
    (folder / "mine.py").write_text("def build():\n    return 1 / 0\n")
    options = ("--module", "mine.py:build", "--spec", spec_file)
    assert "Traceback" not in run(*options).stderr
    shown = run(*options, "--debug")
    assert shown.exit_code == 1
    assert "Traceback" in shown.stderr
    assert "return 1 / 0" in shown.stderr
    assert shown.stderr.splitlines()[-1].startswith("vfx-export: --module mine.py:build: ZeroDivisionError")


@pytest.mark.parametrize("prepare", [Path.touch, lambda path: path.symlink_to("nowhere/else")])
def test_an_output_folder_that_is_none(folder: Path, own: None, prepare: Callable[[Path], None]) -> None:
    prepare(folder / "taken")
    message = refusal(folder, 1, "--model", "own", "--random-weights", "--output", "taken")
    assert "taken/own.onnx: cannot be written: " in message


def test_the_list_says_which_addresses_are_dead() -> None:
    rows = {row["model"]: row["dead"] for row in json.loads(run("--list", "--json").stdout)}
    assert [name for name, dead in rows.items() if dead] == ["mvit_b_16x4"]
    table = CliRunner(env={"COLUMNS": "400"}).invoke(main, ["--list"]).stdout
    (line,) = (line for line in table.splitlines() if "No longer at its address" in line)
    assert "reported gone in 2023" in line
    assert line.endswith(": mvit_b_16x4")


def test_a_dead_address_is_said_before_anything_is_fetched(tmp_path: Path) -> None:
    result = run("--model", "mvit_b_16x4", "--output", tmp_path)
    assert result.exit_code == 2
    assert "no longer at https://drive.google.com" in result.stderr
    assert "--checkpoint" in result.stderr
