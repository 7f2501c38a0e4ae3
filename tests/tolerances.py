"""Every tolerance of the tests, with its reason. Relative errors are L2 against L2."""

PARITY = {
    "fp32": 1e-4,  # the bound; measured 2e-7 to 6e-7 on OpenVINO and ONNX Runtime
    "fp16": 5e-3,  # half-precision tensors; measured 5e-4
    "bf16": 1e-2,  # 8 bits of mantissa; measured 4e-3, a sixteenth of what tells two clips apart (0.068)
}
"""Exported engine against the golden outputs of the public implementation, on the same pixels."""

FLOW_PIXELS = 1e-4
"""Mean end-point error of fp32 flow in pixels, on the same pixels; measured 1e-5 and less."""

PIXEL_SCALED = 1e-6
"""Quantised flow in [-1, 1] against video_features': the same whole numbers; a level apart would be 8e-3."""

END_TO_END = 1e-5
"""fp32 rows from a video file against video_features' own: decoded and resized to the same pixels."""

LOSSY_REENCODING = 1e-2
"""--fps against video_features' x264 re-encoding: measured 7e-3 for the worst row, all of it compression."""

TINY = 1e-5
"""The tiny engine's means against NumPy's: float32 sums of 3,000 numbers in another order."""

TIMESTAMP_MS = 1e-6
"""Presentation times in float64 milliseconds: rounding of a few thousand only."""
