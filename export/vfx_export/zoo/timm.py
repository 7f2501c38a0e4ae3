"""Any image model of timm with published weights, frame by frame: ``timm:<name>``.

The network is timm's own, so timm must be installed. timm's pretrained configuration says how frames are
resized, cropped and normalised. The feature is the input of the classifier.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vfx_engines.errors import UsageError, reason, shown
from vfx_engines.spec import Crop, Filter, Output, Resize, Sampling, Transform
from vfx_export.model import Download, Model, State

PREFIX = "timm:"


class TimmBackbone(nn.Module):
    """A timm model, from pixels to its pooled feature. Its keys have the prefix ``net.``.

    Args:
        net: the model with its classifier, as in its checkpoint.
        mean: mean of red, green and blue, in [0, 1].
        std: standard deviation of red, green and blue, likewise.
    """

    def __init__(self, net: nn.Module, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.net: Any = net
        self.mean, self.std = mean, std
        for part in net.modules():
            # scaled_dot_product_attention would be traced with shape arithmetic around it.
            if hasattr(part, "fused_attn"):
                setattr(part, "fused_attn", False)  # noqa: B010  # the attribute is timm's

    def forward(self, frames: Tensor) -> tuple[Tensor, ...]:
        """The feature.

        Args:
            frames: uint8 ``[batch, 1, height, width, 3]``, RGB, 0 to 255.

        Returns:
            float32 ``[batch, length]``.
        """
        height, width = frames.shape[2:4]
        x = frames.reshape(-1, height, width, 3).permute(0, 3, 1, 2).float()
        mean, std = (torch.tensor(values).reshape(3, 1, 1) for values in (self.mean, self.std))
        x = (x * (1 / (255 * std)) - mean / std).to(next(self.net.parameters()).dtype)
        return (self.net.forward_head(self.net.forward_features(x), pre_logits=True).float(),)


def timm_row(name: str) -> Model:
    """Make the row of a timm model.

    Args:
        name: ``timm:<name>``; the name may have the tag of its weights (``resnet50.a1_in1k``).

    Raises:
        UsageError: timm or torchvision is not installed, timm has no such model or no weights for it, or its
            frames are prepared in a way that a spec cannot express.
    """
    timm = _timm()
    short = name.removeprefix(PREFIX)
    if not timm.is_model(short):
        near = difflib.get_close_matches(short, timm.list_models(), 3, 0.5)
        hint = f"did you mean {', '.join(near)}?" if near else "timm.list_pretrained() names what it has"
        raise UsageError(f"{shown(name)}: timm {timm.__version__} has no such model; {hint}")
    build = partial(timm.create_model, short, pretrained=False)
    with torch.device("meta"):
        net = build().eval()
        config = timm.data.resolve_model_data_config(net)
        pixels = torch.zeros(1, *config["input_size"])
        length = net.forward_head(net.forward_features(pixels), pre_logits=True).shape[-1]
    published = net.pretrained_cfg
    mean, std = config["mean"], config["std"]
    return Model(
        name=name,
        source=f"timm {short}" + (f", {published['hf_hub_id']}" if published.get("hf_hub_id") else ""),
        licence=published.get("license") or "unknown",
        download=Download(_url(name, published)),
        network=lambda head: TimmBackbone(build(), mean, std),
        layouts=_under_net,
        sampling=Sampling(frames=1, stride=1, step=1),
        least_frames=1,
        fixed_frames=True,
        transform=_transform(name, config),
        blank=tuple(round(255 * value) for value in mean),
        feature=Output("timm", (length,), per="frame"),
    )


def _timm() -> Any:
    for package in ("timm", "torchvision"):
        if importlib.util.find_spec(package) is None:
            raise UsageError(
                f"timm:<name> needs {package}, which is not installed: pip install timm torchvision "
                f"(torchvision of the version that goes with torch {torch.__version__})"
            )
    try:
        importlib.import_module("timm.data")
        return importlib.import_module("timm")
    except Exception as error:  # a torchvision that does not fit torch raises RuntimeError
        raise UsageError(
            f"timm cannot be imported: {reason(error)}; install the timm and torchvision that go with torch "
            f"{torch.__version__}"
        ) from error


def _transform(name: str, config: dict[str, Any]) -> Transform:
    _, height, width = config["input_size"]
    mode, interpolation = config["crop_mode"], config["interpolation"]
    if interpolation not in ("bilinear", "bicubic") or mode not in ("center", "squash"):
        raise UsageError(
            f"{name}: its frames are resized by {interpolation} filter and cropped in mode {mode}, expected "
            "bilinear or bicubic, and center or squash: export it with --module and a spec of your own"
        )
    filter_: Filter = interpolation
    full = [math.floor(side / config["crop_pct"]) for side in (height, width)]
    if mode == "center" and height != width:
        raise UsageError(f"{name}: takes frames of {width}x{height}, expected a square")
    resize = Resize("short_side" if mode == "center" else "exact", full[0], full[1], filter_, antialias=True)
    return Transform(resize, Crop(height, width, "centre_round"))


def _url(name: str, published: dict[str, Any]) -> str:
    if published.get("hf_hub_id"):
        return f"https://huggingface.co/{published['hf_hub_id']}/resolve/main/model.safetensors"
    if published.get("url"):
        return str(published["url"])
    raise UsageError(f"{shown(name)}: timm knows of no weights for it; name a tag that has some")


def _under_net(state: State) -> dict[str, Tensor]:
    return {f"net.{key}": value for key, value in state.items()}
