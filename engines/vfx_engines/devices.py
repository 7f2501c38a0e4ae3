"""Which devices this machine has, and how to open a CUDA device."""

from __future__ import annotations

import ctypes
import importlib.util
import os
import re

from vfx_engines.cuda import Cuda
from vfx_engines.errors import UsageError


def available_cores() -> int:
    """Number of CPU cores that this process may run on (its affinity mask, where the system has one)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def missing_driver() -> str | None:
    """Why this machine has no CUDA device, as the end of a message "no CUDA: ..."; None if it has one.

    Asks the driver library directly, because without a driver TensorRT's runtime object crashes the process
    at its first use.
    """
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "libcuda.so.1 is not found; install the NVIDIA driver, or pass the GPU into the container"
    code = driver.cuInit(0)
    if code:
        return f"the driver's cuInit gave error {code}; see whether nvidia-smi lists a device"
    count = ctypes.c_int()
    code = driver.cuDeviceGetCount(ctypes.byref(count))
    if code or not count.value:
        return "the driver lists no device; see nvidia-smi and CUDA_VISIBLE_DEVICES"
    return None


def device_list(text: str) -> list[str]:
    """The devices named by the value of ``--device``.

    Args:
        text: ``cpu``, ``cuda``, ``cuda:1``, ``cuda:0,1``, or ``all`` for all GPUs.

    Returns:
        ``cpu``, ``cuda`` or ``cuda:N`` for each, without duplicates.

    Raises:
        UsageError: the text is none of these, names a GPU twice, or is ``all`` on a machine without a GPU.
    """
    if text == "all":
        reason = missing_driver()
        if reason is not None:
            raise UsageError(f"device all: no CUDA: {reason}; or run with --device cpu")
        count = ctypes.c_int()
        ctypes.CDLL("libcuda.so.1").cuDeviceGetCount(ctypes.byref(count))
        return [f"cuda:{index}" for index in range(count.value)]
    if not re.fullmatch(r"cpu|cuda(:\d{1,4}(,\d{1,4})*)?", text):
        raise UsageError(f"device {text!r}: expected cpu, cuda, cuda:N, cuda:N,M,... or all")
    kind, _, numbers = text.partition(":")
    devices = [f"{kind}:{int(number)}" for number in numbers.split(",")] if numbers else [kind]
    if len(set(devices)) < len(devices):
        raise UsageError(f"device {text!r}: names a GPU twice")
    return devices


def open_cuda(index: int = 0) -> Cuda:
    """Open a CUDA device through cuda-bindings if it is installed, else through PyCUDA.

    Args:
        index: number of the device.

    Raises:
        UsageError: no driver, no such device, or no binding; the message says how to install one.
        CudaError: the driver failed.
    """
    reason = missing_driver()
    if reason is not None:
        raise UsageError(f"device cuda:{index}: no CUDA: {reason}; or run with --device cpu")
    if importlib.util.find_spec("cuda") is not None and importlib.util.find_spec("cuda.bindings") is not None:
        from vfx_engines.cuda_python import CudaPython

        return CudaPython(index)
    if importlib.util.find_spec("pycuda") is not None:
        from vfx_engines.cuda_pycuda import PyCuda

        return PyCuda(index)
    raise UsageError(f"device cuda:{index}: needs cuda-bindings or PyCUDA: pip install cuda-bindings")
