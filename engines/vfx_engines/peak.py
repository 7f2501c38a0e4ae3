"""What a CPU's matrix units can do at best: the yardstick for an engine."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from vfx_engines.backends.openvino import settings
from vfx_engines.errors import UsageError
from vfx_engines.spec import Precision

_SIZE = 2048
"""Side of the matrices: a multiple of every tile, and small enough for the second cache level to feed."""

_LAYERS = 2


def matrix_peak(precision: Precision, threads: int, seconds: float = 1.0) -> float:
    """Multiply-adds per second of square matrix products, kept up for some time.

    One product of 2048 x 2048 matrices after another, on one stream per core as engines run here.
    It is what the machine reaches, not what its data sheet says: clocks that fall under load are in it.
    A mean, as the rates of engines are: the best moment of a shared machine says nothing of what it keeps up.

    Args:
        precision: one that this machine has (`Engine.precision`); fp16 is computed in float32 on a CPU.
        threads: cores to use.
        seconds: to measure for.

    Raises:
        UsageError: ``threads`` or ``seconds`` is not positive.
    """
    if threads < 1 or seconds <= 0:
        raise UsageError(f"{threads} threads for {seconds:g} s: expected 1 or more, for longer than 0 s")
    random = np.random.default_rng(0)
    node = source = ops.parameter([_SIZE, _SIZE], np.float32)
    for _ in range(_LAYERS):
        # Scaled so that values keep their size from layer to layer.
        weights = random.standard_normal((_SIZE, _SIZE), np.float32) / np.float32(_SIZE**0.5)
        node = ops.matmul(node, ops.constant(weights), False, False)
    peak = ov.Model([node], [source], "peak")
    model = ov.Core().compile_model(peak, "CPU", settings(precision, threads, threads))
    requests = [model.create_infer_request() for _ in range(threads)]
    inputs = random.standard_normal((_SIZE, _SIZE), np.float32)
    for request in requests:
        request.infer({0: inputs})
    done = 0
    started = time.perf_counter()
    while not done or time.perf_counter() - started < seconds:
        for request in requests:
            request.start_async()
        for request in requests:
            request.wait()
        done += threads * _LAYERS * _SIZE**3
    return done / (time.perf_counter() - started)
