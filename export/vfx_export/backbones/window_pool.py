"""How PySlowFast's networks pool what enters their heads: as the heads do, by the global mean, or not at all.

The pool of its ResNets' heads has windows as large as the map of training, one position apart.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

import torch.nn.functional as F
from torch import Tensor

from vfx_engines.spec import Pool


class Pooling(Protocol):
    """A network whose pool can be chosen before it is run."""

    MAPS: ClassVar[tuple[str, ...]]
    """Names of what it gives instead of its feature where ``pool`` is ``none``."""
    pool: Pool


def window_mean(x: Tensor, window: int | None) -> Tensor:
    """The mean of the means of all windows over a map, and over time.

    At the size of training there is one window and this is the global mean. On a larger map windows overlap,
    so positions in the middle count more than those at the edges: 8 positions under windows of 7 weigh
    1, 2, 2, 2, 2, 2, 2, 1.

    Args:
        x: ``[batch, channels, time, height, width]``, sides of ``window`` or more.
        window: side of the window; None takes the global mean.

    Returns:
        float32 ``[batch, channels]``.
    """
    if window is None or x.shape[3:] == (window, window):
        return x.float().mean((2, 3, 4))
    # Time first: the windows then overlap on one map and not on all.
    return F.avg_pool2d(x.float().mean(2), window, stride=1).mean((2, 3))
