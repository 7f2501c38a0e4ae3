"""VGGish (Hershey et al., "CNN Architectures for Large-Scale Audio Classification", 2017), from samples.

Keys are those of harritaylor/torchvggish, which video_features uses. The log-mel front end and the
post-processing are those of AudioSet; here, both are part of the network.
"""

from __future__ import annotations

import math
import zipfile
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from vfx_engines.errors import CheckpointError, reason, shown

SAMPLE_RATE = 16_000
SAMPLES = 15_600
"""Samples in a window: 96 log-mel frames of 25 ms, of which the last begins at 0.95 s."""
STEP = 15_360
"""Samples from one window to the next: 0.96 s, so that the log-mel frames of windows follow without a gap."""
LENGTH = 128
"""Length of the feature."""

_FRAMES, _BANDS = 96, 64
_HOP, _FRAME, _FFT = 160, 400, 512
_LOWEST_HZ, _HIGHEST_HZ = 125.0, 7500.0
_LOG_OFFSET = 0.01

# Channels of the 3x3 convolutions. A 2x2 max pool follows each group.
_CONVOLUTIONS: tuple[tuple[int, ...], ...] = ((64,), (128,), (256, 256), (512, 512))

_PCA_BOUND = 2.0
_PCA_SHAPES = {"pca_eigen_vectors": (LENGTH, LENGTH), "pca_means": (LENGTH,)}


class VGGish(nn.Module):
    """VGGish, from a window of audio to a feature of 128 numbers, none of them negative."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 1
        for group in _CONVOLUTIONS:
            for width in group:
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        shrunk = 2 ** len(_CONVOLUTIONS)
        self.embeddings = nn.Sequential(
            nn.Linear(channels * (_FRAMES // shrunk) * (_BANDS // shrunk), 4096),
            nn.ReLU(),
            nn.Linear(4096, 4096),
            nn.ReLU(),
            nn.Linear(4096, LENGTH),
            nn.ReLU(),
        )
        # Not buffers, because no checkpoint has them and half() must leave them in float32.
        transform, mel = _log_mel_constants()
        self._transform, self._mel = torch.from_numpy(transform), torch.from_numpy(mel)
        self._pca: tuple[Tensor, Tensor] | None = None

    def add_pca(self, eigen_vectors: NDArray[np.float32], means: NDArray[np.float32]) -> None:
        """Also output AudioSet's post-processed features: PCA, clipped to [-2, 2] and quantised to 0 to 255.

        Args:
            eigen_vectors: float32 ``[128, 128]``, one component per row.
            means: float32 ``[128]``, subtracted from the feature first.
        """
        # A single product, since E (x - m) = E x - E m; scale and shift of the quantiser are folded in.
        scale = 255 / (2 * _PCA_BOUND)
        matrix = eigen_vectors.astype(np.float64) * scale
        shift = _PCA_BOUND * scale - matrix @ means.astype(np.float64)
        self._pca = (
            torch.from_numpy(np.ascontiguousarray(matrix.T, np.float32)),
            torch.from_numpy(shift.astype(np.float32)),
        )

    def forward(self, samples: Tensor) -> tuple[Tensor, ...]:
        """The feature; after `add_pca`, also the post-processed one.

        Args:
            samples: float32 ``[batch, 15600]``, mono at 16 kHz, in [-1, 1].

        Returns:
            float32 ``[batch, 128]``, 0 or more; then float32 ``[batch, 128]``, whole numbers from 0 to 255.
        """
        return self.embed(self.log_mel(samples))

    def log_mel(self, samples: Tensor) -> Tensor:
        """The log-mel front end: float32 ``[batch, 96, 64]``, from samples as for `forward`."""
        # A frame is two and a half hops long. Three neighbouring hops are put side by side, and the weights
        # of the last half hop are zero. So the Fourier transform is a plain matrix product, without gathers
        # or transposes.
        hops = F.pad(samples, (0, -SAMPLES % _HOP)).reshape(-1, _FRAMES + 2, _HOP)
        frames = torch.cat([hops[:, first : first + _FRAMES] for first in range(3)], dim=2)
        real, imaginary = torch.matmul(frames, self._transform).chunk(2, dim=2)
        magnitude = torch.sqrt(real * real + imaginary * imaginary)
        return torch.log(torch.matmul(magnitude, self._mel) + _LOG_OFFSET)

    def embed(self, log_mel: Tensor) -> tuple[Tensor, ...]:
        """The outputs of `forward`, from log-mel frames, float32 ``[batch, 96, 64]``."""
        x = log_mel.unsqueeze(1).to(next(self.features.parameters()).dtype)
        # The published weights of the first linear layer expect channels last.
        x = self.features(x).permute(0, 2, 3, 1).flatten(1)
        features = self.embeddings(x).float()
        if self._pca is None:
            return (features,)
        matrix, shift = self._pca
        # Clamping to the quantiser's range is the same as clipping to [-2, 2] before it.
        return features, torch.round(torch.clamp(torch.matmul(features, matrix) + shift, 0, 255))


def read_pca(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Eigenvectors and means of AudioSet's post-processing, from the published ``.npz``.

    Returns:
        ``pca_eigen_vectors``, float32 ``[128, 128]``, and ``pca_means``, float32 ``[128]``.

    Raises:
        CheckpointError: the file is missing, damaged, holds something else, or asks for unpickling.
    """
    where = shown(path)
    arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name, shape in _PCA_SHAPES.items():
                # A header may announce any size, which numpy would allocate before it notices.
                if archive.getinfo(f"{name}.npy").file_size > 2**20:
                    raise ValueError(f"{name} takes more than the {list(shape)} numbers expected")
        with np.load(path, allow_pickle=False) as file:
            for name, shape in _PCA_SHAPES.items():
                array = file[name]
                if array.dtype.kind != "f" or array.size != math.prod(shape):
                    raise ValueError(f"{name} is {array.dtype} {list(array.shape)}, expected {list(shape)}")
                arrays[name] = array.reshape(shape).astype(np.float32)
                if not np.isfinite(arrays[name]).all():
                    raise ValueError(f"{name} holds NaN or infinity")
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be read: {error.strerror or reason(error)}") from None
    except Exception as error:  # zipfile, zlib and numpy have exceptions of their own
        raise CheckpointError(
            f"{where}: {reason(error)}; expected vggish_pca_params.npz with {' and '.join(_PCA_SHAPES)}"
        ) from None
    return arrays["pca_eigen_vectors"], arrays["pca_means"]


def _log_mel_constants() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The windowed Fourier transform, cosines before sines, and the mel bands.

    Only frequency bins that are in some mel band are kept.

    Returns:
        float32 ``[480, 2 * bins]`` and float32 ``[bins, 64]``.
    """
    bins = np.arange(1, _FFT // 2 + 1)
    edges = np.linspace(_mel(_LOWEST_HZ), _mel(_HIGHEST_HZ), _BANDS + 2)
    at = np.array([_mel(k * SAMPLE_RATE / _FFT) for k in bins])[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    mel = np.maximum(0, np.minimum(rising, falling))
    heard = mel.any(axis=1)
    n = np.arange(_FRAME)
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * n / _FRAME)
    angle = 2 * np.pi / _FFT * n[:, None] * bins[heard]
    transform = np.zeros((3 * _HOP, 2 * angle.shape[1]))
    transform[:_FRAME] = hann[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    return transform.astype(np.float32), mel[heard].astype(np.float32)


def _mel(hz: float) -> float:
    return 1127 * math.log(1 + hz / 700)
