"""The spec's JSON is a contract: its bytes, what reads back, and what is refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vfx_engines.errors import SpecError
from vfx_engines.spec import (
    Crop,
    EngineSpec,
    Input,
    Output,
    Proof,
    Resize,
    Sampling,
    Text,
    Transform,
    Weights,
)

SPEC = EngineSpec(
    model="i3d",
    weights=Weights("modèle.pth", "ab" * 32, "MIT", "hassony2"),
    precision="bf16",
    input=Input("frames", "frames", "uint8", ("batch", 16, 224, 224, 3), blank=(128, 128, 128)),
    sampling=Sampling(frames=16, stride=1, step=16, fps=25.0, lead=1),
    transform=Transform(Resize("short_side", 256, 256), Crop(224, 224)),
    outputs=(
        Output("rgb", (1024,)),
        Output("logits", (2,), kind="logits", labels=("run", "jump"), activation="softmax"),
    ),
    macs=27_000_000_000,
    proof=Proof("torch 2.13.0, float32, eager", 1e-2, 0.004, 2),
    vfx_version="0.1.0",
)

JSON = """{
 "model": "i3d",
 "weights": {
  "file": "modèle.pth",
  "sha256": "abababababababababababababababababababababababababababababababab",
  "licence": "MIT",
  "source": "hassony2"
 },
 "precision": "bf16",
 "input": {
  "name": "frames",
  "modality": "frames",
  "dtype": "uint8",
  "shape": [
   "batch",
   16,
   224,
   224,
   3
  ],
  "blank": [
   128,
   128,
   128
  ],
  "smallest_side": 1,
  "exact_zeros": false
 },
 "sampling": {
  "frames": 16,
  "stride": 1,
  "step": 16,
  "fps": 25.0,
  "anchor": "start",
  "edges": "drop",
  "lead": 1,
  "target_fps": null,
  "seed": null
 },
 "transform": {
  "resize": {
   "rule": "short_side",
   "height": 256,
   "width": 256,
   "filter": "bilinear",
   "antialias": true,
   "other_side": "truncate",
   "grid": "sides"
  },
  "crop": {
   "height": 224,
   "width": 224,
   "rule": "centre_floor"
  }
 },
 "outputs": [
  {
   "name": "rgb",
   "shape": [
    1024
   ],
   "dtype": "float32",
   "kind": "feature",
   "per": "window",
   "labels": null,
   "activation": null,
   "pool": "head"
  },
  {
   "name": "logits",
   "shape": [
    2
   ],
   "dtype": "float32",
   "kind": "logits",
   "per": "window",
   "labels": [
    "run",
    "jump"
   ],
   "activation": "softmax",
   "pool": "head"
  }
 ],
 "macs": 27000000000,
 "proof": {
  "reference": "torch 2.13.0, float32, eager",
  "tolerance": 0.01,
  "error": 0.004,
  "inputs": 2
 },
 "plan": null,
 "text": null,
 "vfx_version": "0.1.0",
 "spec_version": 1
}"""


def refusal(text: str | bytes) -> str:
    with pytest.raises(SpecError) as caught:
        EngineSpec.from_json(text)
    message = str(caught.value)
    assert message.isprintable(), message
    return message


def changed(place: str, value: object) -> str:
    """SPEC's JSON with another value at ``place``, as in ``outputs.0.name``."""
    data = json.loads(JSON)
    *parents, last = place.split(".")
    target = data
    for key in parents:
        target = target[int(key) if key.isdecimal() else key]
    target[int(last) if last.isdecimal() else last] = value
    return json.dumps(data)


def test_the_bytes_are_fixed() -> None:
    assert SPEC.to_json() == JSON


@pytest.mark.parametrize("form", [str, str.encode, lambda text: b"\xef\xbb\xbf" + text.encode()])
def test_the_bytes_read_back(form: Callable[[str], str | bytes]) -> None:
    assert EngineSpec.from_json(form(JSON)) == SPEC


def test_what_has_a_default_may_be_left_out() -> None:
    data = json.loads(JSON)
    for key in ("macs", "proof", "vfx_version"):
        del data[key]
    for key in ("fps", "anchor", "edges", "lead", "target_fps", "seed"):
        del data["sampling"][key]
    spec = EngineSpec.from_json(json.dumps(data))
    sampling = Sampling(frames=16, stride=1, step=16)
    assert spec == replace(SPEC, macs=None, proof=None, vfx_version="", sampling=sampling)


def test_a_whole_number_may_stand_for_a_float() -> None:
    spec = EngineSpec.from_json(changed("sampling.fps", 25))
    assert spec == SPEC
    assert type(spec.sampling.fps) is float


sizes = st.integers(1, 5000)
names = st.from_regex(r"[\w:+-]([\w :.+-]{0,20}\w)?", fullmatch=True).filter(str.isprintable)
resizes = st.builds(
    lambda rule, size, **rest: Resize(rule[0], size, size, grid=rule[1], **rest),
    st.sampled_from(
        [("short_side", "sides"), ("short_side", "scale"), ("long_side", "scale"), ("exact", "sides")]
    ),
    sizes,
    filter=st.sampled_from(["bilinear", "bicubic"]),
    antialias=st.booleans(),
    other_side=st.sampled_from(["truncate", "round"]),
)
samplings = st.builds(
    Sampling,
    frames=sizes,
    stride=sizes,
    step=sizes,
    fps=st.none() | st.floats(2**-31, 10_000, exclude_min=True, exclude_max=True),
    anchor=st.sampled_from(["start", "centre"]),
    edges=st.sampled_from(["drop", "repeat", "zeros"]),
    lead=st.integers(0, 9),
)
outputs = st.one_of(
    st.builds(
        Output,
        names,
        st.lists(sizes, max_size=3).map(tuple),
        dtype=st.sampled_from(["float32", "float16"]),
        per=st.sampled_from(["window", "frame"]),
        pool=st.sampled_from(["head", "global", "none"]),
    ),
    st.builds(
        lambda name, labels: Output(name, (len(labels),), kind="logits", labels=tuple(labels)),
        names,
        st.lists(st.text(), min_size=1),
    ),
)


@st.composite
def specs(draw: st.DrawFn) -> EngineSpec:
    sampling, crop = draw(samplings), draw(st.builds(Crop, sizes, sizes))
    text = draw(st.none() | st.builds(Text, names, st.floats(1e-3, 1e3), st.text()))
    if text is not None:
        taken = Input(draw(names), "text", "int32", ("batch", draw(sizes)), (0,))
        transform = Transform()
    elif draw(st.booleans()):
        shape: tuple[int | str, ...] = ("batch", sampling.frames, crop.height, crop.width, 3)
        blank = draw(st.tuples(*[st.integers(0, 255)] * 3))
        taken = Input(draw(names), "frames", "uint8", shape, blank)
        transform = Transform(draw(st.none() | resizes), crop)
    else:
        taken = Input(draw(names), "audio", "float32", ("batch", draw(sizes | st.just("samples"))), (0,))
        transform = Transform()
    finite = st.floats(0, allow_nan=False, allow_infinity=False)
    given_out = draw(st.lists(outputs, min_size=1, max_size=3, unique_by=lambda item: item.name))
    if sampling.frames > 1 and draw(st.booleans()):
        pairs = sampling.frames - 1
        given_out = [Output(item.name, (pairs, *item.shape), per="pair") for item in given_out]
    return EngineSpec(
        model=draw(names),
        weights=draw(st.builds(Weights, st.text(), st.none() | st.text(), st.text(), st.text())),
        precision=draw(st.sampled_from(["fp32", "fp16", "bf16"])),
        input=taken,
        sampling=sampling,
        transform=transform,
        outputs=tuple(given_out),
        macs=draw(st.none() | st.integers(0)),
        proof=draw(st.none() | st.builds(Proof, st.text(), finite, finite, st.integers(1))),
        text=text,
        vfx_version=draw(st.text()),
    )


@settings(deadline=None)
@given(specs())
def test_every_spec_reads_back_as_it_was(spec: EngineSpec) -> None:
    text = spec.to_json()
    assert EngineSpec.from_json(text) == spec
    assert EngineSpec.from_json(text.encode()) == spec
    assert EngineSpec.from_json(text).to_json() == text


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
PLACES = [
    *("model", "weights", "weights.sha256", "precision", "input", "input.shape", "input.shape.1"),
    *("input.blank", "sampling", "sampling.frames", "sampling.fps", "sampling.edges", "transform"),
    *("transform.crop", "transform.resize.antialias", "outputs", "outputs.0", "outputs.1.labels", "macs"),
    *("outputs.0.name", "outputs.0.shape", "proof", "proof.error", "vfx_version", "spec_version"),
]


@settings(deadline=None)
@given(st.sampled_from(PLACES), anything)
def test_any_value_anywhere_is_read_or_refused_in_one_line(place: str, value: object) -> None:
    text = changed(place, value)
    try:
        spec = EngineSpec.from_json(text)
    except SpecError:
        refusal(text)
    else:
        assert EngineSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "not JSON"),
        (JSON[:-1], "not JSON"),
        (b"\xff\xfe\xfa", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "a JSON list, expected an object"),
        ("null", "a JSON NoneType, expected an object"),
        ("{}", "spec_version is None, expected 1 to 1"),
    ],
    ids=["empty", "cut", "bytes", "deep", "list", "null", "object"],
)
def test_what_is_no_spec(text: str | bytes, says: str) -> None:
    assert says in refusal(text)


def test_a_newer_version_is_named_before_what_it_changed() -> None:
    data = json.loads(JSON) | {"spec_version": 2, "new": "field"}
    message = refusal(json.dumps(data))
    assert "spec version 2 is newer than 1" in message
    assert "upgrade vfx" in message


@pytest.mark.parametrize("version", [0, -1, 1.0, True, "1", None, [1]])
def test_a_version_that_is_none(version: object) -> None:
    assert "spec_version is" in refusal(changed("spec_version", version))


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("colour", "red", "spec: unknown field 'colour'"),
        ("sampling.a\nb", 1, r"spec.sampling: unknown field 'a\nb'"),
        ("outputs.1.size", 1, "spec.outputs[1]: unknown field 'size'"),
        ("model", 3, "spec.model: expected str, found 3"),
        ("weights", "random", "spec.weights: expected an object, found 'random'"),
        ("weights.sha256", 7, "spec.weights.sha256: expected str, found 7"),
        ("precision", "int8", "spec.precision: 'int8' is none of 'fp32', 'fp16', 'bf16'"),
        ("precision", "x" * 1000, "xxx... is none of"),
        ("input.shape", "batch", "spec.input.shape: expected tuple, found 'batch'"),
        ("input.shape.1", 16.0, "spec.input.shape[1]: expected int | str, found 16.0"),
        ("input.shape.1", True, "spec.input.shape[1]: expected int | str, found True"),
        ("sampling.frames", "16", "spec.sampling.frames: expected int, found '16'"),
        ("sampling.frames", True, "spec.sampling.frames: expected int, found True"),
        ("sampling.frames", None, "spec.sampling.frames: expected int, found None"),
        ("sampling.fps", "25", "spec.sampling.fps: expected float, found '25'"),
        ("sampling.fps", True, "spec.sampling.fps: expected float, found True"),
        ("sampling.fps", math.nan, "spec.sampling.fps: expected float, found nan"),
        ("sampling.fps", math.inf, "spec.sampling.fps: expected float, found inf"),
        ("sampling.fps", 10**400, "spec.sampling.fps: expected float, found 1000"),
        ("transform.resize.antialias", 1, "spec.transform.resize.antialias: expected bool, found 1"),
        ("outputs", {}, "spec.outputs: expected tuple, found {}"),
        ("outputs.1.labels", "run", "spec.outputs[1].labels: expected tuple, found 'run'"),
        ("macs", 1.5, "spec.macs: expected int, found 1.5"),
        ("proof.error", math.nan, "spec.proof.error: expected float, found nan"),
    ],
)
def test_a_field_that_does_not_fit_is_named(place: str, value: object, says: str) -> None:
    assert says in refusal(changed(place, value))


@pytest.mark.parametrize(
    "place",
    ["model", "weights", "weights.file", "input.dtype", "sampling.step", "transform", "outputs.0.shape"],
)
def test_a_missing_field_is_named(place: str) -> None:
    data = json.loads(JSON)
    *parents, last = place.split(".")
    target = data
    for key in parents:
        target = target[int(key) if key.isdecimal() else key]
    del target[last]
    assert f"field {last!r} is missing" in refusal(json.dumps(data))


RULES: list[tuple[str, str, Any]] = [
    ("axis 0 must be 'batch', found [16]", "input.shape", [16]),
    ("axis 0 must be 'batch', found []", "input.shape", []),
    ("axis 0 must be 'batch'", "input.shape.0", "time"),
    ("axes are sizes of 1 or more", "input.shape.2", 0),
    ("names that differ", "input.shape.1", "batch"),
    ("frames are uint8 [batch, time, height, width, 3]", "input.shape.4", 4),
    ("frames are uint8 [batch, time, height, width, 3]", "input.shape", ["batch", 16, 224, 3]),
    ("frames are uint8", "input.dtype", "float32"),
    ("texts are int32 [batch, tokens] of one length, and nothing else is", "input.dtype", "int32"),
    ("texts are int32 [batch, tokens]", "input.modality", "text"),
    ("three values of 0 to 255", "input.blank", [0]),
    ("three values of 0 to 255", "input.blank", [0, 256, 0]),
    ("three values of 0 to 255", "input.blank.2", -1),
    ("frames must be at least 1, found 0", "sampling.frames", 0),
    ("stride must be at least 1, found -2", "sampling.stride", -2),
    ("step must be at least 1, found 0", "sampling.step", 0),
    ("lead must not be negative", "sampling.lead", -1),
    ("target_fps must lie between 0 and 10000, found 0.0", "sampling.target_fps", 0),
    ("a seed of 32 bits goes with edges 'loop', found 1", "sampling.seed", 1),
    ("fps must lie between 0 and 1000000, found 0.0", "sampling.fps", 0),
    ("fps must lie between 0 and 1000000", "sampling.fps", 1_000_000),
    ("target_fps must lie between 0 and 10000", "sampling.target_fps", 1e-300),
    ("fps must lie between 0 and 10000", "sampling.fps", 10_000),
    ("resize: sizes must be positive, found 0x0", "transform.resize", {"height": 0, "width": 0}),
    ("rule short_side takes one size, found 256x255", "transform.resize", {"height": 256, "width": 255}),
    ("rule exact has no scale", "transform.resize", {"rule": "exact", "grid": "scale"}),
    ("crop: sizes must be positive", "transform.crop.width", 0),
    ("2 labels do not fit shape [3]", "outputs.1.shape", [3]),
    ("2 labels do not fit shape [1, 2]", "outputs.1.shape", [1, 2]),
    ("sizes must be at least 1, found [0]", "outputs.0.shape", [0]),
    ("16 frames have 15 pairs, so all outputs are per 'pair'", "outputs.0.per", "pair"),
    ("no outputs", "outputs", []),
    ("two outputs share a name", "outputs.1.name", "rgb"),
    ("input takes 8 frames, sampling gives 16", "input.shape.1", 8),
    ("input takes frames of [112, 224], transform gives [224, 224]", "input.shape.2", 112),
    ("input takes frames of [224, 224], transform gives [224, 192]", "transform.crop.width", 192),
    ("model '': expected a name", "model", ""),
    ("model '../x': expected a name", "model", "../x"),
    (r"output 'a\nb': expected a name", "outputs.0.name", "a\nb"),
    ("output 'a/b': expected a name", "outputs.0.name", "a/b"),
    ("output ' rgb': expected a name", "outputs.0.name", " rgb"),
    ("an activation is of logits", "outputs.0.activation", "softmax"),
    ("'max' is none of 'head', 'global', 'none'", "outputs.0.pool", "max"),
    ("input '..': expected a name", "input.name", ".."),
    (r"axis '\x1f': expected a name", "input.shape.1", "\x1f"),
]


def test_pairs_are_those_of_the_window() -> None:
    (rgb, _) = SPEC.outputs
    pairs = replace(SPEC, outputs=(replace(rgb, shape=(15, 1024), per="pair"),))
    assert EngineSpec.from_json(pairs.to_json()) == pairs
    with pytest.raises(SpecError, match="16 frames have 15 pairs"):
        replace(SPEC, outputs=(replace(rgb, shape=(16, 1024), per="pair"),))


def test_sound_has_a_sample_to_fill_up_with() -> None:
    assert Input("samples", "audio", "float32", ("batch", 16), blank=(0,)).blank == (0,)
    with pytest.raises(SpecError, match="blank is the sample that fills windows up, found none"):
        Input("samples", "audio", "float32", ("batch", 16), blank=())


@pytest.mark.parametrize(("says", "place", "value"), RULES)
def test_every_rule(says: str, place: str, value: object) -> None:
    if isinstance(value, dict):
        value = json.loads(JSON)["transform"]["resize"] | value
    assert says in refusal(changed(place, value))


def test_an_exact_resize_without_a_crop_must_give_the_inputs_size() -> None:
    exact = replace(SPEC, transform=Transform(Resize("exact", 224, 224)))
    assert EngineSpec.from_json(exact.to_json()) == exact
    with pytest.raises(SpecError, match=r"transform gives \[224, 192\]"):
        replace(SPEC, transform=Transform(Resize("exact", 224, 192)))


def test_dynamic_axes_may_be_named() -> None:
    shape = ("batch", "time", "height", "width", 3)
    spec = replace(SPEC, input=replace(SPEC.input, shape=shape), transform=Transform())
    assert EngineSpec.from_json(spec.to_json()) == spec


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_proof_without_numbers_is_none(number: float) -> None:
    with pytest.raises(SpecError, match="finite"):
        Proof("torch", 1e-4, number, 2)
    with pytest.raises(SpecError, match="finite"):
        Proof("torch", number, 0.0, 2)


def test_the_span_of_a_window() -> None:
    assert Sampling(frames=8, stride=4, step=32).span == 29
    assert Sampling(frames=1, stride=4, step=1).span == 1


@pytest.mark.parametrize(
    ("scale", "says"),
    [
        (1, "text goes with an input of modality 'text', and only with it"),
        (0, "text: scale must be positive"),
    ],
)
def test_what_texts_need_goes_with_texts(scale: float, says: str) -> None:
    assert says in refusal(changed("text", {"images": "clip", "scale": scale, "merges": "a b"}))


def test_an_input_of_texts_says_what_they_need() -> None:
    taken = {"name": "tokens", "modality": "text", "dtype": "int32", "shape": ["batch", 77]}
    assert "text goes with an input of modality 'text'" in refusal(changed("input", taken))
