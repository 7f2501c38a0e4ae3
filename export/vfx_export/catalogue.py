"""All models: a row of data and a network for each. The runtime only reads specs, never this catalogue."""

from __future__ import annotations

import difflib

import torch

from vfx_engines.errors import UsageError
from vfx_export.fitting import Shapes, key_shapes
from vfx_export.model import Model
from vfx_export.zoo import clip, i3d, mvit, pwc, pyslowfast, r2plus1d, raft, resnet, s3d, timm, vggish, x3d

CATALOGUE: tuple[Model, ...] = (
    *i3d.ROWS,
    *s3d.ROWS,
    *r2plus1d.ROWS,
    *raft.ROWS,
    *pwc.ROWS,
    *resnet.ROWS,
    *clip.ROWS,
    *vggish.ROWS,
    *pyslowfast.ROWS,
    *x3d.ROWS,
    *mvit.ROWS,
)


def catalogue_shapes() -> dict[str, Shapes]:
    """Key -> shape of each model's checkpoint, by model name, to suggest which model a wrong file is of."""
    with torch.device("meta"):
        return {model.name: key_shapes(model.network(False)) for model in CATALOGUE}


def find(name: str) -> Model:
    """The row of a model of the catalogue, or of ``timm:<name>``.

    Raises:
        UsageError: no such model; the message suggests similar names.
    """
    if name.startswith(timm.PREFIX):
        return timm.timm_row(name)
    for model in CATALOGUE:
        if model.name == name:
            return model
    names = [model.name for model in CATALOGUE]
    near = difflib.get_close_matches(name, names, 3, 0.5)
    hint = f"did you mean {', '.join(near)}?" if near else f"available: {', '.join(names)}"
    raise UsageError(f"unknown model {name!r}; {hint}")
