"""Model repositories: configurations by Triton's own schema, and versions that appear whole or not at all."""

from __future__ import annotations

import dataclasses
import os
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tiny import tiny_engine, tiny_spec
from tiny_flow import tiny_flow_spec
from triton_server import publish
from vfx_engines import EngineSpec, OutputError, UsageError, read_spec
from vfx_engines.spec import Output, Plan
from vfx_export.triton_config import Serving, config_text, parse_instances
from vfx_export.triton_repository import new_version

ANY = Path("models")


def parsed(text: str) -> Any:
    """The configuration as Triton's schema reads it: a field that it does not have is an error."""
    schema = pytest.importorskip("tritonclient.grpc.model_config_pb2")
    from google.protobuf import text_format

    return text_format.Parse(text, schema.ModelConfig())


def as_plan(spec: EngineSpec) -> EngineSpec:
    plan = Plan("10.13.0", "NVIDIA H200", (9, 0), "0" * 64, (1, 4, 8))
    return dataclasses.replace(spec, plan=plan, precision="fp16")


def test_an_onnx_file_on_a_cpu() -> None:
    config = parsed(config_text("tiny", 1, tiny_spec(), Serving(ANY, ((1, 4, 16),))))
    assert (config.name, config.backend, config.max_batch_size) == ("tiny", "onnxruntime", 16)
    assert not config.platform
    (given,), (made,) = config.input, config.output
    types = type(given).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert (given.name, given.data_type) == ("frames", types["TYPE_UINT8"].number)
    assert list(given.dims) == [4, 16, 16, 3]
    assert (made.name, made.data_type, list(made.dims)) == ("features", types["TYPE_FP32"].number, [4])
    (group,) = config.instance_group
    assert (group.kind, group.count) == (group.KIND_CPU, 1)
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16]
    assert config.dynamic_batching.max_queue_delay_microseconds == 5000
    assert [item.batch_size for item in config.model_warmup] == [1, 4, 16]
    for item in config.model_warmup:
        assert item.inputs["frames"].random_data
        assert list(item.inputs["frames"].dims) == [4, 16, 16, 3]
    assert list(config.parameters) == ["vfx_1"]
    assert EngineSpec.from_json(config.parameters["vfx_1"].string_value) == tiny_spec()


def test_an_onnx_file_on_gpus() -> None:
    config = parsed(config_text("tiny", 1, tiny_spec(), Serving(ANY, kind="gpu", instances=2)))
    (group,) = config.instance_group
    assert (group.kind, group.count, list(group.gpus)) == (group.KIND_GPU, 2, [])
    assert config.parameters["cudnn_conv_algo_search"].string_value == "0"


def test_a_plan_with_its_profiles() -> None:
    spec = as_plan(tiny_spec())
    spec = dataclasses.replace(spec, outputs=(Output("features", (4,), "float16"),))
    config = parsed(config_text("tiny", 1, spec, Serving(ANY, ((1, 4, 8), (1, 16, 32)), "gpu")))
    assert (config.backend, config.max_batch_size) == ("tensorrt", 32)
    assert list(config.instance_group[0].profile) == ["0", "1"]
    assert list(config.dynamic_batching.preferred_batch_size) == [4, 16, 32]
    assert config.optimization.cuda.graphs
    types = type(config.output[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_name
    assert config.output[0].data_type == types["TYPE_FP16"].number


def test_axes_of_the_video_are_open_and_have_a_size_for_the_warm_up() -> None:
    config = parsed(config_text("tiny_flow", 1, tiny_flow_spec(), Serving(ANY)))
    assert list(config.input[0].dims) == [3, -1, -1, 3]
    assert list(config.output[0].dims) == [2, 2, -1, -1]
    assert list(config.model_warmup[0].inputs["frames"].dims) == [3, 256, 256, 3]


@pytest.mark.parametrize(
    "text",
    ['a "quoted" \\ name', "tab\there", "line\nend", "Überraschung, 驚き, 🙂", "\x00\x1f\x7f", "\\101\\n"],
)
def test_any_text_of_a_spec_comes_back(text: str) -> None:
    spec = tiny_spec()
    spec = dataclasses.replace(spec, weights=dataclasses.replace(spec.weights, source=text))
    config = parsed(config_text('odd "name" \\ é', 12, spec, Serving(ANY)))
    assert config.name == 'odd "name" \\ é'
    assert EngineSpec.from_json(config.parameters["vfx_12"].string_value) == spec


@pytest.mark.parametrize(
    ("text", "plan", "found"),
    [
        (None, False, ("cpu", 1)),
        (None, True, ("gpu", 1)),
        ("gpu:4", False, ("gpu", 4)),
        ("cpu", False, ("cpu", 1)),
    ],
)
def test_instances(text: str | None, plan: bool, found: tuple[str, int]) -> None:
    assert parse_instances(text, plan) == found


@pytest.mark.parametrize(("text", "plan"), [("tpu", False), ("gpu:0", False), ("gpu:", False), ("cpu", True)])
def test_impossible_instances_are_refused(text: str, plan: bool) -> None:
    with pytest.raises(UsageError, match="--instances"):
        parse_instances(text, plan)


def test_versions_are_counted_and_keep_their_own_specs(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    first = publish(repository, tiny_engine(tmp_path / "a.onnx"))
    second = publish(repository, tiny_engine(tmp_path / "b.onnx", labels=True, step=2))
    assert [first.name, second.name] == ["1", "2"]
    model = repository / "tiny"
    assert sorted(item.name for item in model.iterdir()) == ["1", "2", "config.pbtxt", "logits_labels.txt"]
    assert (model / "logits_labels.txt").read_text() == "red\ngreen\nblue\ngrey\nother\n"
    config = parsed((model / "config.pbtxt").read_text("utf-8"))
    assert config.output[1].label_filename == "logits_labels.txt"
    for version in (1, 2):
        spec = EngineSpec.from_json(config.parameters[f"vfx_{version}"].string_value)
        assert spec == read_spec(model / str(version) / "model.onnx")
    (first / "model.onnx").unlink()
    first.rmdir()
    assert publish(repository, tiny_engine(tmp_path / "c.onnx")).name == "3"
    config = parsed((model / "config.pbtxt").read_text("utf-8"))
    assert sorted(config.parameters) == ["vfx_2", "vfx_3"]


def test_exports_at_the_same_time_are_versions_with_their_own_specs(tmp_path: Path) -> None:
    repository = tmp_path / "models"
    engines = [tiny_engine(tmp_path / f"{step}.onnx", step=step) for step in range(1, 9)]
    with ThreadPoolExecutor(len(engines)) as threads:
        made = list(threads.map(partial(publish, repository), engines))
    assert sorted(int(version.name) for version in made) == [*range(1, 9)]
    config = parsed((repository / "tiny" / "config.pbtxt").read_text("utf-8"))
    for version, engine in zip(made, engines, strict=True):
        spec = EngineSpec.from_json(config.parameters[f"vfx_{version.name}"].string_value)
        assert spec == read_spec(version / "model.onnx") == read_spec(engine)


def test_a_failed_export_leaves_nothing(tmp_path: Path) -> None:
    class Stopped(Exception):
        pass

    def stopped() -> None:
        with new_version(tmp_path / "models", "tiny") as version:
            version.file("onnx").write_bytes(b"half")
            raise Stopped

    with pytest.raises(Stopped):
        stopped()
    assert list(tmp_path.iterdir()) == []
    publish(tmp_path / "models", tiny_engine(tmp_path / "a.onnx"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(Stopped):
        stopped()
    assert sorted(tmp_path.rglob("*")) == before


def test_a_version_that_never_came_costs_the_others_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the configuration and the version: the version that is there has its own spec still."""
    repository = tmp_path / "models"
    publish(repository, tiny_engine(tmp_path / "a.onnx"))

    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "rename", full)
        with pytest.raises(OutputError, match="No space left"):
            publish(repository, tiny_engine(tmp_path / "b.onnx", step=2))
    assert [item.name for item in (repository / "tiny").iterdir() if item.is_dir()] == ["1"]
    config = parsed((repository / "tiny" / "config.pbtxt").read_text("utf-8"))
    spec = EngineSpec.from_json(config.parameters["vfx_1"].string_value)
    assert spec == read_spec(repository / "tiny" / "1" / "model.onnx")
    assert publish(repository, tiny_engine(tmp_path / "b.onnx", step=2)).name == "2"


def test_a_repository_that_is_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    with pytest.raises(UsageError, match="this is a file"):
        publish(tmp_path / "models", tiny_engine(tmp_path / "a.onnx"))
