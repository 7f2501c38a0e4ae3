"""From the layouts in which PySlowFast's weights are published to the keys of its networks."""

from __future__ import annotations

import re
from collections.abc import Mapping

from torch import Tensor

_LEAVES = {
    "w": "weight",
    "b": "bias",
    "bn_s": "bn.weight",
    "bn_b": "bn.bias",
    "bn_rm": "bn.running_mean",
    # The name says "inverse of the deviation", but it holds the variance.
    "bn_riv": "bn.running_var",
}
_LEAF = r"_(?P<leaf>bn_(?:s|b|rm|riv)|w|b)"
_BLOCK = r"(?P<fast>t_)?res(?P<stage>[2-5])_(?P<block>\d+)_"

# Pattern of the names of Caffe2 blobs -> the key; both without the leaf.
_BLOBS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern + _LEAF), key)
    for pattern, key in (
        (r"(?P<fast>t_)?(?:res_)?conv1", "s1.pathway{path}_stem.conv"),
        (r"(?P<fast>t_)?conv1_xy", "s1.pathway{path}_stem.conv_xy"),
        (r"t_pool1_subsample", "s1_fuse.conv_f2s"),
        (r"t_res(?P<stage>[2-5])_\d+_branch2c_bn_subsample", "s{stage}_fuse.conv_f2s"),
        (_BLOCK + r"branch2b_bn_(?P<fc>fc[12])", "s{stage}.pathway{path}_res{block}.branch2.se.{fc}"),
        (_BLOCK + r"branch1", "s{stage}.pathway{path}_res{block}.branch1"),
        (_BLOCK + r"branch2(?P<part>[abc])", "s{stage}.pathway{path}_res{block}.branch2.{part}"),
        (
            r"nonlocal_conv(?P<stage>[2-5])_(?P<block>\d+)_(?P<part>theta|phi|g|out)",
            "s{stage}.pathway0_nonlocal{block}.conv_{part}",
        ),
        (r"nonlocal_conv(?P<stage>[2-5])_(?P<block>\d+)", "s{stage}.pathway0_nonlocal{block}"),
        (r"pred", "head.projection"),
        (r"(?P<part>conv_5|lin_5)", "head.{part}"),
    )
)
# Blobs that training leaves in a file beside the weights.
_TRAINING = ("lr", "model_iter")
_PLAIN_BN = re.compile(r"(stem\.conv|_fuse\.conv_f2s|_nonlocal\d+)$")


def rename_pyslowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state with the keys of PySlowFast's networks, from a ``.pyth`` file or the blobs of a Caffe2 file.

    Batch norms that were split over parts of a batch (``split_bn``) are merged. Other keys stay as they are.
    """
    if any(name.endswith("_bn_riv") for name in state):
        return _from_blobs(state)
    return _merged(state)


def _from_blobs(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    out = {}
    for name, value in state.items():
        if name not in _TRAINING and not name.endswith("_momentum"):
            key = blob_key(name)
            out[key] = _with_axes(key, value)
    return out


def blob_key(name: str) -> str:
    """The key of a Caffe2 blob; a name that is in no network of the zoo is returned unchanged.

    ``res2_0_branch2a_bn_riv`` becomes ``s2.pathway0_res0.branch2.a_bn.running_var``.
    """
    for pattern, key in _BLOBS:
        match = pattern.fullmatch(name)
        if match is None:
            continue
        found = match.groupdict()
        where = key.format(path=1 if found.get("fast") else 0, **found)
        leaf = _LEAVES[found["leaf"]]
        if not leaf.startswith("bn."):
            return f"{where}.{leaf}"
        # A norm is a sibling of its convolution, and named after it where a block has several.
        if _PLAIN_BN.search(where):
            return f"{where.removesuffix('.conv').removesuffix('.conv_f2s')}.{leaf}"
        return f"{where}_{leaf}"
    return name


def _with_axes(key: str, value: Tensor) -> Tensor:
    """Restore the last axes of a kernel, which Caffe2 omits where they are 1.

    All weights except norms' and the classifier's have five axes.
    """
    axes = 5 if key.endswith(".weight") and value.ndim > 1 and key != "head.projection.weight" else value.ndim
    return value.reshape(*value.shape, *(1 for _ in range(axes - value.ndim)))


def _merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge each split batch norm into one, with the statistics of all its parts together."""
    norms = {key.partition(".split_bn.")[0] for key in state if ".split_bn." in key}
    out = {}
    for key, value in state.items():
        norm = key.rpartition(".")[0]
        if norm in norms:
            out[key] = value.flatten()
        elif not {norm.removesuffix(".split_bn"), norm.removesuffix(".bn")} & norms:
            out[key] = value
    for norm in norms:
        means, variances = (state.get(f"{norm}.split_bn.running_{what}") for what in ("mean", "var"))
        scale = state.get(f"{norm}.weight")
        if means is None or variances is None or scale is None or means.numel() % scale.numel():
            continue
        means, variances = (part.reshape(-1, scale.numel()).float() for part in (means, variances))
        out[f"{norm}.running_mean"] = means.mean(0)
        # The variance over all parts is the mean variance within them plus the variance between their means.
        out[f"{norm}.running_var"] = variances.mean(0) + means.var(0, correction=0)
    return out
