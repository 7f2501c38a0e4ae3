"""The lean runtime: decode, sample, resize, run the engine, write features. It does not need PyTorch.

from vfx_runtime import extract

features = extract("a.mp4", "i3d.onnx")
features.arrays["rgb"]      # float32 [rows, 1024]
features.timestamps_ms      # float64 [rows, 2]

for done in extract(["clips/", "list.txt"], "i3d.onnx", output="features"):
    print(done.path, done.error or done.files)
"""

from vfx_runtime.delivering import Extracted
from vfx_runtime.extracting import extract
from vfx_runtime.features import Features
from vfx_runtime.reading import read_features
from vfx_runtime.views import Views
from vfx_runtime.zero_shot import ZeroShot

__all__ = ["Extracted", "Features", "Views", "ZeroShot", "extract", "read_features"]
