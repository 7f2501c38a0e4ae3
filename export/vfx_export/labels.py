"""Class names of the data sets that classifier heads were trained on."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def kinetics400() -> tuple[str, ...]:
    """The 400 classes of Kinetics-400, in the order of I3D's logits (Kay et al., 2017; CC BY 4.0).

    From index 0, ``abseiling``, to index 399, ``zumba``: in alphabetical order, as in DeepMind's
    ``label_map.txt``, which I3D, S3D, R(2+1)D and video_features share.
    """
    return _lines("kinetics400.txt")


@cache
def imagenet1k() -> tuple[str, ...]:
    """The 1000 classes of ImageNet (Russakovsky et al., 2015), in the order of torchvision's logits.

    A label consists of WordNet's names for a synset, joined by commas; labels are in the order of the
    synsets' numbers. Index 0 is ``tench, Tinca tinca``; 134 (the bird) and 517 (the machine) are both
    ``crane``.
    """
    return _lines("imagenet1k.txt")


def _lines(file: str) -> tuple[str, ...]:
    text = resources.files("vfx_export").joinpath("labels", file).read_text("utf-8")
    return tuple(text.splitlines())
