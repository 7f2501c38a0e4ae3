"""The layouts in which PySlowFast's weights circulate, brought to the keys of its networks."""

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
    # Named after the inverse of a deviation, and a variance all the same.
    "bn_riv": "bn.running_var",
}
_LEAF = r"_(?P<leaf>bn_(?:s|b|rm|riv)|w|b)"
_BLOCK = r"(?P<fast>t_)?res(?P<stage>[2-5])_(?P<block>\d+)_"

# Names of Caffe2 blobs, without the leaf -> the key, without it.
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
# What training leaves in a file beside the weights.
_TRAINING = ("lr", "model_iter")
_PLAIN_BN = re.compile(r"(stem\.conv|_fuse\.conv_f2s|_nonlocal\d+)$")


def rename_pyslowfast(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys of PySlowFast's networks, from those or from the blobs of a Caffe2 file.

    Batch norm that was split over parts of a batch becomes one again. Keys of no such layout are left as they
    are.
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
    """The key of a Caffe2 blob: ``s2.pathway0_res0.branch2.a_bn.running_var`` of ``res2_0_branch2a_bn_riv``.

    A name that no network of the zoo has is given back as it is.
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
        # The norm is a neighbour of its convolution, named after it where a block has several.
        if _PLAIN_BN.search(where):
            return f"{where.removesuffix('.conv').removesuffix('.conv_f2s')}.{leaf}"
        return f"{where}_{leaf}"
    return name


def _with_axes(key: str, value: Tensor) -> Tensor:
    """Caffe2 leaves the last axes of a kernel out where they are 1; all but the classifier's are five."""
    axes = 5 if key.endswith(".weight") and value.ndim > 1 and key != "head.projection.weight" else value.ndim
    return value.reshape(*value.shape, *(1 for _ in range(axes - value.ndim)))


def _merged(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One batch norm for each that was split: the statistics of all parts taken together."""
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
        # Of all parts: the mean variance within them and the variance between them.
        out[f"{norm}.running_var"] = variances.mean(0) + means.var(0, correction=0)
    return out
