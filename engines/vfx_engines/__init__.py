"""Engines: the spec that travels with each of them, and the backends that run them.

from vfx_engines import open_engine

with open_engine("i3d.onnx", precision="bf16") as engine:
    features = engine.run(windows)["rgb"]      # uint8 [n, 64, 224, 224, 3] -> float32 [n, 1024]
"""

from vfx_engines.engine import Backend, Engine
from vfx_engines.errors import (
    CheckpointError,
    DownloadError,
    EngineError,
    ExportError,
    InputError,
    OutputError,
    SpecError,
    UsageError,
    VfxError,
    VideoError,
)
from vfx_engines.opening import open_engine, read_spec
from vfx_engines.spec import (
    Crop,
    EngineSpec,
    Input,
    Output,
    Precision,
    Proof,
    Resize,
    Sampling,
    Text,
    Transform,
    Weights,
)

__all__ = [
    "Backend",
    "CheckpointError",
    "Crop",
    "DownloadError",
    "Engine",
    "EngineError",
    "EngineSpec",
    "ExportError",
    "Input",
    "InputError",
    "Output",
    "OutputError",
    "Precision",
    "Proof",
    "Resize",
    "Sampling",
    "SpecError",
    "Text",
    "Transform",
    "UsageError",
    "VfxError",
    "VideoError",
    "Weights",
    "open_engine",
    "read_spec",
]
