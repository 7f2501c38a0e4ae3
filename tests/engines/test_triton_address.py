"""Addresses of served engines: what is one, what it says, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from vfx_engines import UsageError, open_engine
from vfx_engines.triton.address import ServerAddress, is_address, server_address
from vfx_engines.triton.server import FIRST_PAUSE, LONGEST_PAUSE, _pause


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("grpc://host:8001/i3d", ServerAddress("grpc", "host:8001", "i3d")),
        ("grpc://host/i3d", ServerAddress("grpc", "host:8001", "i3d")),
        ("http://10.0.0.7/i3d/", ServerAddress("http", "10.0.0.7:8000", "i3d")),
        ("http://[::1]:9000/i3d", ServerAddress("http", "[::1]:9000", "i3d")),
        ("grpc://host/timm%3Aresnet50", ServerAddress("grpc", "host:8001", "timm:resnet50")),
        ("grpc://host/timm:resnet50", ServerAddress("grpc", "host:8001", "timm:resnet50")),
        (
            "grpc://host/i3d?version=3&requests=8&tries=2&timeout=1.5",
            ServerAddress("grpc", "host:8001", "i3d", "3", 8, 2, 1.5),
        ),
    ],
)
def test_an_address_is_read_from_text_and_from_a_path_that_lost_a_slash(
    text: str, address: ServerAddress
) -> None:
    assert is_address(text)
    assert server_address(text) == server_address(Path(text)) == address
    assert server_address(str(address)).model == address.model


@pytest.mark.parametrize("file", ["i3d.onnx", "/a/grpc:/i3d.onnx", "grpc/i3d.plan", "ftp://host/i3d"])
def test_files_are_no_addresses(file: str) -> None:
    assert not is_address(file)
    assert not is_address(Path(file))


@pytest.mark.parametrize(
    "text",
    [
        "grpc://host",
        "grpc:///i3d",
        "grpc://host/a/b",
        "grpc://host:port/i3d",
        "grpc://host:99999/i3d",
        "grpc://user:secret@host/i3d",
        "grpc://[::1/i3d",
        "grpcs://host/i3d",
        "https://host/i3d",
        "grpc://host/i3d?requests=1",
        "grpc://host/i3d?requests=65",
        "grpc://host/i3d?tries=0",
        "grpc://host/i3d?tries=-1",
        "grpc://host/i3d?timeout=0",
        "grpc://host/i3d?timeout=nan",
        "grpc://host/i3d?version=latest",
        "grpc://host/i3d?colour=red",
        "grpc://host/a%0Ab",
    ],
)
def test_what_is_no_address_is_refused_in_one_line(text: str) -> None:
    with pytest.raises(UsageError, match="expected") as refused:
        server_address(text)
    assert str(refused.value).isprintable()


@pytest.mark.parametrize("given", [{"device": "cuda"}, {"backend": "openvino"}, {"threads": 2}, {"batch": 0}])
def test_what_a_server_decides_is_not_given(given: dict[str, object]) -> None:
    with pytest.raises(UsageError, match=r"leave it out|expected 1 or more"):
        open_engine("grpc://host/i3d", **given)  # type: ignore[arg-type]


def test_pauses_grow_are_bounded_and_differ() -> None:
    for tries in range(1, 40):
        longest = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** (tries - 1))
        pauses = {_pause(tries) for _ in range(20)}
        assert len(pauses) > 1
        assert all(longest / 2 <= pause <= longest for pause in pauses)
