"""How the commands end."""

from __future__ import annotations

import pytest

from vfx_engines.ending import ends
from vfx_engines.errors import EngineError, UsageError


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (UsageError("--batch 0: expected 1 or more"), 2, "vfx-x: --batch 0: expected 1 or more\n"),
        (EngineError("a.onnx: damaged"), 1, "vfx-x: a.onnx: damaged\n"),
        (KeyboardInterrupt(), 130, "vfx-x: interrupted\n"),
    ],
)
def test_an_error_is_a_line_and_an_exit_code(
    raised: BaseException, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left, ends("vfx-x", debug=False):
        raise raised
    assert left.value.code == code
    assert capsys.readouterr() == ("", said)


def test_an_interrupted_import_is_an_interruption(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left, ends("vfx-x", debug=False):
        raise ImportError("initialization failed") from KeyboardInterrupt()
    assert left.value.code == 130
    assert capsys.readouterr() == ("", "vfx-x: interrupted\n")
    with pytest.raises(ImportError), ends("vfx-x", debug=False):
        raise ImportError("no such module")


def test_debug_shows_where_it_came_from(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit), ends("vfx-x", debug=True):
        raise EngineError("a.onnx: damaged")
    said = capsys.readouterr().err
    assert said.startswith("Traceback")
    assert said.endswith("vfx-x: a.onnx: damaged\n")


def test_a_mistake_of_our_own_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), ends("vfx-x", debug=False):
        raise ZeroDivisionError
