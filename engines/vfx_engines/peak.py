"""The best rate that a CPU's matrix units reach, to measure engines against."""

from __future__ import annotations

import time

import numpy as np
import openvino as ov
from openvino import opset13 as ops

from vfx_engines.backends.openvino import settings
from vfx_engines.errors import UsageError
from vfx_engines.spec import Precision

_SIZE = 2048
"""Side of the matrices: a multiple of every tile, and small enough to be fed from the second-level cache."""

_LAYERS = 2


def matrix_peak(precision: Precision, threads: int, seconds: float = 1.0) -> float:
    """Multiply-adds per second of square matrix products, sustained for some time.

    Computes products of 2048 x 2048 matrices, with one OpenVINO stream per core. The result is what the
    machine reaches rather than what its data sheet says, so it includes clocks that fall under load. It is a
    mean, like the rates of engines: the best moment of a shared machine does not tell what it can sustain.

    Args:
        precision: one that this machine has (`Engine.precision`); on a CPU, fp16 is computed in float32.
        threads: cores to use, 1 or more.
        seconds: how long to measure.

    Raises:
        UsageError: ``threads`` or ``seconds`` is not positive.
    """
    if threads < 1 or seconds <= 0:
        raise UsageError(f"{threads} threads for {seconds:g} s: expected 1 or more, for longer than 0 s")
    random = np.random.default_rng(0)
    node = source = ops.parameter([_SIZE, _SIZE], np.float32)
    for _ in range(_LAYERS):
        # Scaled so that activations keep their magnitude from layer to layer.
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
