"""Every network of the catalogue: its engine against the same network in torch, and against the peak.

    .venv/bin/python benchmarks/models.py                    # all but the largest, about an hour
    .venv/bin/python benchmarks/models.py s3d clip_vit_b_32  # some
    .venv/bin/python benchmarks/models.py --new s3d          # into the results that are there
    .venv/bin/python benchmarks/models.py --table            # the table and chart of those, again

Weights are random: what a network computes does not change how long it takes. The contenders take turns
within each round, on the same input, all cores; ratios are medians over the rounds. A round in which other
processes or guests took more than a twentieth of the cores is made again, twice as often as rounds at most.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from graphs import profile
from material import FOLDER, RESULTS, save
from matplotlib.figure import Figure

from vfx_engines import Engine, open_engine
from vfx_engines.peak import matrix_peak
from vfx_engines.spec import Precision
from vfx_export.catalogue import CATALOGUE, find
from vfx_export.exporting import export_model, random_weights
from vfx_export.model import Model
from vfx_runtime.measuring import Others, measure_engine

LARGEST = ("i3d_flow_raft", "i3d_flow_pwc", "clip_rn50x16", "clip_rn50x64", "clip_vit_l_14_336px")
"""These take minutes each, and are only measured when they are named."""

FLOW_SIZE = {"height": 240, "width": 320}
ENOUGH = {"ratio": {"fp32": 2.0, "bf16": 7.0}, "peak": {"fp32": 0.8, "bf16": 0.6}}
"""An engine is fast enough if it reaches either the ratio to eager or the share of the peak."""

DISTURBED = 0.05
"""Share of the cores that other processes may take in a round; if they take more, the round is repeated."""

PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("models", nargs="*", help="[default: all but the largest]")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2.0, help="of an engine, per round")
    parser.add_argument("--new", action="store_true", help="keep the results of other models")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    arguments = parser.parse_args()
    path = RESULTS / "models.json"
    if arguments.table:
        tabulate(json.loads(path.read_text()))
        return
    names = arguments.models or [model.name for model in CATALOGUE if model.name not in LARGEST]
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(cores)
    found: dict[str, Any] = json.loads(path.read_text())["models"] if arguments.new and path.exists() else {}
    for name in names:
        found[name] = measured(find(name), cores, arguments.rounds, arguments.seconds)
        for precision in PRECISIONS:
            if not enough(found[name], precision):
                found[name][precision]["operators"] = operators(find(name), precision)
        print(line(name, found[name]), flush=True)
        save("models", {"rounds": arguments.rounds, "models": in_order(found)})
    tabulate(json.loads(path.read_text()))


def in_order(found: dict[str, Any]) -> dict[str, Any]:
    return {model.name: found[model.name] for model in CATALOGUE if model.name in found}


def operators(model: Model, precision: Precision) -> dict[str, float]:
    """The four types of operators that take most of one core's time for a window, with their shares."""
    times = profile(exported(model, precision), precision, batch=1, size=256, runs=3)
    shares: dict[str, float] = {}
    for (kind, _, _), seconds in times.items():
        shares[kind] = shares.get(kind, 0) + seconds / sum(times.values())
    return dict(sorted(shares.items(), key=lambda item: -item[1])[:4])


def exported(model: Model, precision: Precision) -> Path:
    """The file: for bf16 a separate one if the network is rewritten or marked, otherwise the fp32 file."""
    rewritten = precision == "bf16" and (model.low_precision is not None or bool(model.float32))
    path = FOLDER / f"{model.name}{'_bf16' if rewritten else ''}.onnx"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        frames = 1 if model.overlap == 1 else None
        export_model(model, path, checkpoint=None, precision="bf16" if rewritten else "fp32", frames=frames)
    return path


def measured(model: Model, cores: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Windows per second of each contender, ratios to torch eager, and shares of the peak."""
    sizes = FLOW_SIZE if model.transform.crop is None and model.modality == "frames" else {}
    engines = {
        precision: open_engine(exported(model, precision), sizes=sizes, precision=precision)
        for precision in PRECISIONS
    }
    engine = engines["fp32"]
    module = model.network(False)
    random_weights(module)
    module.eval()
    random = np.random.default_rng(0)
    buffer = engine.buffer(0)
    given = (
        random.integers(0, 256, buffer.shape, np.uint8)
        if buffer.dtype == np.uint8
        else random.uniform(-1, 1, buffer.shape).astype(np.float32)
    )
    tensor = torch.from_numpy(given)

    def eager() -> float:
        count, started = 0, time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - started < seconds or not count:
                module(tensor)
                count += len(given)
        return count / (time.perf_counter() - started)

    runs: dict[str, Callable[[], float]] = {"eager": eager}
    for precision, item in engines.items():
        runs[precision] = partial(engine_rate, item, seconds)
    with torch.inference_mode():
        module(tensor[:1])  # warm-up; `measure_engine` warms engines up itself
    rates: list[dict[str, float]] = []
    disturbed: list[tuple[float, dict[str, float]]] = []
    while len(rates) < rounds and len(disturbed) <= 2 * rounds:
        others = Others()
        found = {name: run() for name, run in runs.items()}
        found |= {
            f"{name} peak": matrix_peak(item.precision, cores, seconds) for name, item in engines.items()
        }
        share = others.share or 0.0
        if share <= DISTURBED:
            rates.append(found)
        else:
            disturbed.append((share, found))
    disturbed.sort(key=lambda item: item[0])
    taken = rates or [found for _, found in disturbed[:rounds]]
    macs = engine.spec.macs or 0
    result: dict[str, Any] = {
        "batch": engine.batch,
        "macs": macs,
        "rounds": len(taken),
        "share_of_others": 0.0 if rates else disturbed[0][0],
        "eager_windows_s": statistics.median(item["eager"] for item in taken),
        "computed_in": {precision: item.precision for precision, item in engines.items()},
    }
    for precision in PRECISIONS:
        result[precision] = {
            "windows_s": statistics.median(item[precision] for item in taken),
            "ratio": statistics.median(item[precision] / item["eager"] for item in taken),
            "share_of_peak": statistics.median(
                item[precision] * macs / item[f"{precision} peak"] for item in taken
            ),
        }
    for item in engines.values():
        item.close()
    return result


def engine_rate(item: Engine, seconds: float) -> float:
    return measure_engine(item, seconds).windows_per_second


def enough(found: dict[str, Any], precision: str) -> bool:
    part = found[precision]
    return bool(
        part["ratio"] >= ENOUGH["ratio"][precision] or part["share_of_peak"] >= ENOUGH["peak"][precision]
    )


def line(name: str, found: dict[str, Any]) -> str:
    parts = [
        f"{precision} {found[precision]['ratio']:6.2f}x {found[precision]['share_of_peak']:5.0%} of the peak"
        f"{'' if enough(found, precision) else ' (short)':8}"
        for precision in PRECISIONS
    ]
    return f"{name:34} eager {found['eager_windows_s']:9.2f}/s   {'   '.join(parts)}"


def tabulate(results: dict[str, Any]) -> None:
    """Write the results as a Markdown table and as a chart."""
    found = in_order(results["models"])
    machine = results["machine"]
    fp32, bf16 = (f"{ENOUGH['ratio'][p]:g} times eager or {ENOUGH['peak'][p]:.0%}" for p in PRECISIONS)
    lines = [
        f"# Every network of the catalogue, {machine['cores']} cores",
        "",
        f"`benchmarks/models.py`, {machine['date']}, {machine['cpu']}, random weights. Times torch's eager",
        "mode in fp32, on the same batch in the same run; and the share of the multiply-accumulates that",
        f"OpenVINO's matrix products reach in the same precision. Enough is {fp32} in fp32,",
        f"{bf16} in bf16; where it is less, the operators that take most of one core's time are named.",
        "",
        "| model | eager, windows/s | fp32 | bf16 | held back by |",
        "|---|---|---|---|---|",
    ]
    for name, item in found.items():
        cells = " | ".join(f"{item[p]['ratio']:.2f}x, {item[p]['share_of_peak']:.0%}" for p in PRECISIONS)
        short = [p for p in PRECISIONS if not enough(item, p)]
        why = "; ".join(f"{p}: {_shares(item[p].get('operators', {}))}" for p in short)
        lines.append(f"| `{name}` | {item['eager_windows_s']:.2f} | {cells} | {why} |")
    (RESULTS / "models.md").write_text("\n".join([*lines, ""]), "utf-8")
    draw(RESULTS / "models.png", found)


def _shares(operators: dict[str, float]) -> str:
    return ", ".join(f"{kind} {share:.0%}" for kind, share in operators.items())


def draw(path: Path, found: dict[str, Any]) -> None:
    figure = Figure(figsize=(9, 0.42 * len(found) + 1.5), layout="constrained")
    axes = figure.subplots()
    places = np.arange(len(found))
    for shift, precision, colour in ((-0.2, "fp32", "#4878a8"), (0.2, "bf16", "#d9843b")):
        bars = axes.barh(
            places + shift,
            [item[precision]["ratio"] for item in found.values()],
            0.38,
            label=precision,
            color=colour,
        )
        labels = [
            f"{item[precision]['ratio']:.1f}x, {item[precision]['share_of_peak']:.0%} of the peak"
            for item in found.values()
        ]
        axes.bar_label(bars, labels, padding=3, fontsize=8)
    axes.set_yticks(places, list(found))
    axes.invert_yaxis()
    axes.margins(x=0.25)
    axes.axvline(1, color="#888888", linewidth=0.8)
    axes.set_xlabel("times the windows per second of torch eager in fp32")
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
