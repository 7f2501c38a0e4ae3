"""VGGish as video_features runs it (Hershey et al., 2017)."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from vfx_engines.spec import Output, Sampling, Transform
from vfx_export.backbones.vggish import LENGTH, SAMPLE_RATE, SAMPLES, STEP, VGGish, read_pca
from vfx_export.model import Download, Model


def _add_pca(module: nn.Module, file: Path) -> Output:
    assert isinstance(module, VGGish)
    module.add_pca(*read_pca(file))
    return Output("pca", (LENGTH,))


ROWS = (
    Model(
        name="vggish",
        source="harritaylor/torchvggish v0.1 (AudioSet's vggish_model.ckpt, converted)",
        licence="Apache-2.0",
        download=Download(
            "https://github.com/harritaylor/torchvggish/releases/download/v0.1/vggish-10086976.pth"
        ),
        network=lambda head: VGGish(),
        layouts=lambda state: state,
        sampling=Sampling(frames=SAMPLES, stride=1, step=STEP, fps=float(SAMPLE_RATE)),
        least_frames=SAMPLES,
        transform=Transform(),
        blank=(0, 0, 0),
        feature=Output("vggish", (LENGTH,)),
        labels=None,
        fixed_frames=True,
        modality="audio",
        postprocess=_add_pca,
    ),
)
