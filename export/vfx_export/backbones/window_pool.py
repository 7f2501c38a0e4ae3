"""How the last maps of PySlowFast's networks are pooled: as in the head, by the global mean, or not at all.

The head of its ResNets has an average pool with a window as large as the map in training, and stride 1.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from vfx_engines.spec import Pool


class Pooling(Protocol):
    """A network whose pool can be chosen before it is run or traced."""

    MAPS: ClassVar[tuple[str, ...]]
    """Names of the outputs that replace the feature if ``pool`` is ``none``."""
    pool: Pool


def window_mean(x: Tensor, window: int | None) -> Tensor:
    """The mean over time and over all window positions of the mean in a window.

    At the size of training there is only one window position, and this is the global mean. On a larger map,
    windows overlap, so positions in the middle count more than those at the edges: with windows of 7, 8
    positions have the weights 1, 2, 2, 2, 2, 2, 2, 1.

    Args:
        x: ``[batch, channels, time, height, width]``, height and width at least ``window``.
        window: height and width of the window; None takes the global mean.

    Returns:
        float32 ``[batch, channels]``.
    """
    if window is None or x.shape[3:] == (window, window):
        return x.float().mean((2, 3, 4))
    # The mean over time is taken first, so that windows are pooled on one map instead of all.
    return F.avg_pool2d(x.float().mean(2), window, stride=1).mean((2, 3))
