"""Class names of the data sets that classifier heads were trained on."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def kinetics400() -> tuple[str, ...]:
    """The 400 classes of Kinetics-400, in the order of I3D's logits (Kay et al., 2017; CC BY 4.0).

    Index 0 is ``abseiling``, index 399 ``zumba``: alphabetical, as in DeepMind's ``label_map.txt``,
    which I3D, S3D, R(2+1)D and video_features share.
    """
    text = resources.files("vfx_export").joinpath("labels/kinetics400.txt").read_text("utf-8")
    return tuple(text.splitlines())
