"""What exported graphs are made of: operators by number, and their share of the CPU's time in OpenVINO.

    .venv/bin/python benchmarks/graphs.py i3d.onnx resnet50.onnx
    .venv/bin/python benchmarks/graphs.py --precision bf16 --slowest 10 s3d.onnx

The counts are those of the file; the times those of OpenVINO's own operators, which fuse several of the
file's and add reorders, where layouts change. One core, and of each operator its fastest run. A loop's
body is in the counts; in the times the loop is one operator.
"""

from __future__ import annotations

import argparse
from collections import Counter, defaultdict
from pathlib import Path
from typing import get_args

import numpy as np
import onnx
import openvino as ov

from vfx_engines.backends.openvino import settings
from vfx_engines.onnx_file import read_onnx_spec
from vfx_engines.spec import Precision

Seconds = dict[tuple[str, str, str], float]
"""The best time in seconds of each operator that ran, by its (type, kernel, name)."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("engines", nargs="+", type=Path, metavar="ENGINE.onnx")
    parser.add_argument(
        "--precision", choices=get_args(Precision), help="to compute in [default: the file's]"
    )
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--size", type=int, default=256, help="of dynamic axes [default: 256]")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--slowest", type=int, default=0, help="list so many single operators too")
    arguments = parser.parse_args()
    for path in arguments.engines:
        precision: Precision = arguments.precision or read_onnx_spec(path).precision
        counts = operators(onnx.load(path, load_external_data=False).graph)
        print(f"{path.name}: {sum(counts.values())} operators")
        print("  " + ", ".join(f"{count} {kind}" for kind, count in counts.most_common()))
        times = profile(path, precision, arguments.batch, arguments.size, arguments.runs)
        total = sum(times.values())
        print(f"  OpenVINO {ov.__version__.split('-')[0]}, {precision}: {total * 1e3:.1f} ms in {len(times)}")
        by_kind: dict[str, float] = defaultdict(float)
        for (kind, _, _), seconds in times.items():
            by_kind[kind] += seconds
        ran = Counter(kind for kind, _, _ in times)
        for kind, seconds in sorted(by_kind.items(), key=lambda item: -item[1]):
            print(f"  {seconds / total:7.1%}  {ran[kind]:4} {kind}")
        slowest = sorted(times, key=lambda key: -times[key])[: arguments.slowest]
        for kind, kernel, name in slowest:
            print(f"  {times[kind, kernel, name] / total:7.1%}  {name} ({kind}, {kernel})")


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """Number of operators of each type; those in the body of a loop count once."""
    counts = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                counts += operators(attribute.g)
    return counts


def profile(path: Path, precision: Precision, batch: int, size: int, runs: int) -> Seconds:
    core = ov.Core()
    model = core.read_model(path)
    spec = read_onnx_spec(path)
    shape = [batch, *(axis if isinstance(axis, int) else size for axis in spec.input.shape[1:])]
    model.reshape({spec.input.name: shape})
    one_core = {**settings(precision, streams=1, threads=1), "PERF_COUNT": True}
    request = core.compile_model(model, "CPU", one_core).create_infer_request()
    noise = np.random.default_rng(0).integers(0, 256, shape)
    data = noise.astype(np.uint8) if spec.input.dtype == "uint8" else (noise / 127.5 - 1).astype(np.float32)
    request.set_input_tensor(ov.Tensor(data))
    best: Seconds = {}
    for _ in range(runs):
        request.infer()
        for node in request.profiling_info:
            key = node.node_type, node.exec_type, node.node_name
            seconds = node.real_time.total_seconds()
            # Operators that were fused into others, or that only name memory, are listed with no time.
            if seconds:
                best[key] = min(seconds, best.get(key, seconds))
    return best


if __name__ == "__main__":
    main()
