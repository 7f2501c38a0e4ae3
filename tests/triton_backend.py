"""A stand-in for Triton's backend "onnxruntime", written in Python and running on the CPU.

NVIDIA's own is only in its containers. Triton loads this file for a model whose configuration names that
backend, and checks the configuration, batches requests and warms up just the same.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import onnxruntime
import triton_python_backend_utils as triton  # type: ignore[import-not-found]


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        self.input = config["input"][0]["name"]
        self.outputs = [output["name"] for output in config["output"]]
        self.slow = Path(__file__).with_name("slow")
        self.calls = Path(__file__).with_name(f"calls-{config['name']}")

    def execute(self, requests: list[Any]) -> list[Any]:
        if self.slow.exists():
            time.sleep(float(self.slow.read_text("ascii")))
        answers = []
        for request in requests:
            rows = triton.get_input_tensor_by_name(request, self.input).as_numpy()
            arrays = self.session.run(self.outputs, {self.input: rows})
            tensors = [triton.Tensor(name, array) for name, array in zip(self.outputs, arrays, strict=True)]
            answers.append(triton.InferenceResponse(tensors))
        with self.calls.open("a", encoding="ascii") as calls:
            calls.write(f"{len(requests)}\n")
        return answers
