"""``vfx-export --text``: checkpoint and vocabulary from a server or from files, and what is refused."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_texts import merges, small_archive, small_clip, vocabulary_file
from vfx_engines import CheckpointError, read_spec
from vfx_export import catalogue
from vfx_export.cli import main
from vfx_export.model import Download
from vfx_export.text_exporting import read_merges
from vfx_export.zoo.clip import VOCABULARY


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, str]]:
    """A folder with an archive and a vocabulary, and the address that it is served at."""
    folder = tmp_path_factory.mktemp("served")
    small_archive(folder / "small.pt")
    vocabulary_file(folder / "merges.txt.gz")
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=folder)) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield folder, f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def here(served: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty current folder, and a small CLIP whose files are downloaded from this machine."""
    folder, url = served
    published = [
        Download(f"{url}/{name}", sha256=sha256(folder / name)) for name in ("small.pt", "merges.txt.gz")
    ]
    monkeypatch.setattr(catalogue, "CATALOGUE", (*catalogue.CATALOGUE, small_clip("small", *published)))
    monkeypatch.setenv("VFX_CACHE", str(tmp_path / "cache"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def test_both_files_are_downloaded_and_the_engine_is_named_after_the_model(
    here: Path, served: tuple[Path, str]
) -> None:
    result = run("--model", "small", "--text")
    assert result.exit_code == 0, result.output
    assert result.stdout == "small_text.onnx\n"
    assert "small_text, fp32, 77 tokens -> text [24]" in result.stderr
    spec = read_spec(here / "small_text.onnx")
    assert (spec.weights.file, spec.weights.sha256) == ("small.pt", sha256(served[0] / "small.pt"))
    assert spec.text is not None
    assert spec.text.merges.split("\n") == merges()
    assert sorted(path.name for path in here.parent.joinpath("cache").iterdir()) == [
        "merges.txt.gz",
        "small.pt",
    ]


def test_files_of_ones_own(here: Path, tmp_path: Path) -> None:
    archive = small_archive(tmp_path / "own.pt", seed=5)
    plain = tmp_path / "plain.txt"
    plain.write_text("a version\r\n" + "\r\n".join(merges(["horse"])), "utf-8")
    given = ("--checkpoint", archive, "--vocabulary", plain, "--output", "other.onnx")
    result = run("--model", "small", "--text", "--precision", "fp16", *given)
    assert result.exit_code == 0, result.output
    spec = read_spec(here / "other.onnx")
    assert (spec.model, spec.precision, spec.weights.file) == ("small_text", "fp16", "own.pt")
    assert spec.text is not None
    assert spec.text.merges.startswith("h o\nho r\n")


def test_random_weights_are_said(here: Path) -> None:
    result = run("--model", "small", "--text", "--random-weights")
    assert result.exit_code == 0, result.output
    assert result.stderr.startswith("RANDOM WEIGHTS")
    assert read_spec(here / "small_text.onnx").weights.sha256 is None


def test_the_archive_of_a_clip_whose_text_encoder_is_alike_is_refused(
    here: Path, served: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vfx_export.backbones.clip_vit import CLIPViT

    row = catalogue.find("small")
    wide = replace(row, name="wide", network=lambda head: CLIPViT(32, 16, 128, 2, 24))
    monkeypatch.setattr(catalogue, "CATALOGUE", (row, wide))
    result = run("--model", "wide", "--text", "--checkpoint", served[0] / "small.pt")
    assert result.exit_code == 1
    assert "does not fit wide" in result.stderr
    assert "it looks like small" in result.stderr
    assert not list(here.iterdir())


def damaged(kind: str, path: Path) -> str:
    """Write a file that is no vocabulary; what is said of it."""
    lines = merges()
    text = "\n".join(["a version", *lines]).encode()
    packed = gzip.compress(text, 1)
    data, says = {
        "short": ("\n".join(["a version", *lines[:-1]]).encode(), "48893 merges"),
        "three": (text.replace(lines[7].encode(), b"a b c", 1), "line 9 is 'a b c'"),
        "one": (text.replace(lines[7].encode(), b"abc", 1), "line 9 is 'abc'"),
        "cut": (packed[: len(packed) // 2], "cannot be read: "),
        "flipped": (packed[:-6] + bytes([packed[-6] ^ 1]) + packed[-5:], "cannot be read: "),
        "binary": (b"\xff\xfe" + text, "not UTF-8 text"),
        "empty": (b"", "0 merges"),
    }[kind]
    path.write_bytes(data)
    return says


@pytest.mark.parametrize("kind", ["short", "three", "one", "cut", "flipped", "binary", "empty"])
def test_what_is_no_vocabulary_is_said(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "given.gz"
    says = damaged(kind, path)
    with pytest.raises(CheckpointError) as caught:
        read_merges(path)
    assert says in str(caught.value)
    assert str(caught.value).isprintable()
    assert "expected CLIP's bpe_simple_vocab_16e6.txt.gz" in str(caught.value)


def test_a_vocabulary_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be read: No such file or directory"):
        read_merges(tmp_path / "none.gz")


def test_the_published_vocabulary_is_checked_by_its_hash() -> None:
    assert VOCABULARY.url.endswith("/bpe_simple_vocab_16e6.txt.gz")
    assert VOCABULARY.sha256 is not None
    assert len(VOCABULARY.sha256) == 64
