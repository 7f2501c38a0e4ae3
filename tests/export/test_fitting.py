import math

import pytest
import torch
from torch import nn

import parity_kit
from vfx_engines.errors import CheckpointError
from vfx_export.backbones.i3d import I3D
from vfx_export.fitting import key_shapes, load_into, rename_i3d


class Net(nn.Module):
    def __init__(self, channels: int = 3, classes: int = 5):
        super().__init__()
        self.stem = nn.Conv3d(channels, 4, 3, bias=False)
        self.norm = nn.BatchNorm3d(4)
        self.head = nn.Linear(4, classes)


def refusal(module: nn.Module, state, **kwargs) -> str:
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_into(module, state, model="net", **kwargs)
    text = str(caught.value)
    assert len(text.splitlines()) == 1
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    return text


@pytest.mark.parametrize("counters", [True, False])
def test_counters_may_be_there_or_not(counters):
    state = Net().state_dict()
    if not counters:
        del state["norm.num_batches_tracked"]
    module = Net()
    load_into(module, state, model="net")
    assert torch.equal(module.head.weight, state["head.weight"])
    assert torch.equal(module.norm.running_mean, state["norm.running_mean"])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_floating_types_become_float32(dtype):
    state = {key: value.to(dtype) for key, value in Net().state_dict().items()}
    module = Net()
    load_into(module, state, model="net")
    assert module.stem.weight.dtype is torch.float32
    assert torch.equal(module.stem.weight, state["stem.weight"].float())


def test_missing_unknown_and_misshapen_keys_are_listed():
    state = Net().state_dict()
    del state["norm.weight"], state["norm.bias"]
    state["norm.bias"] = torch.ones(7)
    state.update({f"extra.{i}": torch.ones(1) for i in range(5)})
    text = refusal(Net(), state, file="a.pt")
    assert text.startswith("a.pt does not fit net: 1 missing (norm.weight), 5 unknown (extra.0, ")
    assert "extra.2 and 2 more), 1 misshapen (norm.bias is [7] and should be [4])" in text


def test_flow_weights_for_an_rgb_network_are_recognised():
    text = refusal(Net(channels=3), Net(channels=2).state_dict())
    assert "its first layer takes 2 channels (optical flow), that of net 3 channels (RGB)" in text


def test_another_number_of_classes_is_recognised():
    assert "its classifier has 157 classes, that of net 5" in refusal(Net(), Net(classes=157).state_dict())


@pytest.mark.parametrize("shapes", [((), (3,)), ((3,), ()), ((4,), (4, 2)), ((4, 2), (4,))])
def test_shapes_of_any_rank_give_a_message(shapes):
    found, wanted = shapes
    module = nn.Module()
    module.register_buffer("table", torch.zeros(wanted))
    assert "1 misshapen" in refusal(module, {"table": torch.zeros(found)})


def test_the_nearest_catalogue_model_is_named_and_built_only_then():
    calls = []

    def others():
        calls.append(1)
        return {"net": key_shapes(Net()), "linear": {"w": (2, 3), "b": (2,)}, "far": {"x": (1,)}}

    load_into(Net(), Net().state_dict(), model="net", others=others)
    assert not calls
    text = refusal(Net(), {"w": torch.zeros(2, 3), "b": torch.zeros(2)}, others=others)
    assert "it looks like linear (100% of keys and shapes agree)" in text
    assert "expected the weights of net" in refusal(Net(), {"y": torch.zeros(1)}, others=others)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        (torch.ones(4, dtype=torch.int64), "norm.bias is int64"),
        (torch.ones(4, dtype=torch.bool), "norm.bias is bool"),
        (torch.ones(4, dtype=torch.complex64), "norm.bias is complex64"),
        (torch.eye(4)[0].to_sparse(), "norm.bias is float32 (sparse_coo)"),
        (torch.ones(4, device="meta"), "norm.bias is float32 without data"),
        (torch.tensor([0.0, math.nan, 0, 0]), "norm.bias holds NaN"),
        (torch.tensor([0.0, 0, 0, -math.inf]), "norm.bias holds NaN, infinity"),
        (torch.tensor([0.0, 1e300, 0, 0], dtype=torch.float64), "more than float32 can"),
    ],
    ids=["int", "bool", "complex", "sparse", "meta", "nan", "inf", "overflow"],
)
def test_values_that_are_no_weights_are_refused(value, says):
    assert says in refusal(Net(), {**Net().state_dict(), "norm.bias": value})


def to_piergiaj(key: str) -> str:
    key = key.replace("conv3d_0c_1x1.", "logits.").replace(".batch3d.", ".bn.")
    for ours, theirs in (
        ("branch_0", "b0"),
        ("branch_1.0", "b1a"),
        ("branch_1.1", "b1b"),
        ("branch_2.0", "b2a"),
        ("branch_2.1", "b2b"),
        ("branch_3.1", "b3b"),
    ):
        key = key.replace(f".{ours}.", f".{theirs}.")
    return key if key.startswith("logits") else key[0].upper() + key[1:]


@pytest.mark.parametrize("counters", [True, False])
def test_both_published_layouts_give_the_i3d_of_the_kit(counters):
    arrays = parity_kit.kit("i3d_rgb").checkpoint(seed=3)
    ours = {
        key: torch.from_numpy(value) for key, value in arrays.items() if counters or "num_batches" not in key
    }
    assert len(ours) == (344 if counters else 287)
    theirs = {to_piergiaj(key): value for key, value in ours.items()}
    assert "Mixed_3b.b1a.bn.running_var" in theirs
    assert not theirs.keys() & ours.keys()
    assert list(rename_i3d(theirs)) == list(rename_i3d(ours)) == list(ours)
    for state in (ours, theirs):
        module = I3D()
        load_into(module, state, model="i3d", rename=rename_i3d)
        loaded = module.state_dict()
        assert all(torch.equal(loaded[key], ours[key]) for key in key_shapes(module))


def test_i3d_flow_weights_for_i3d_rgb():
    flow = {k: torch.from_numpy(v) for k, v in parity_kit.kit("i3d_flow").checkpoint().items()}
    with pytest.raises(CheckpointError, match=r"1 misshapen .*2 channels \(optical flow\)"):
        load_into(I3D(), flow, model="i3d", rename=rename_i3d)


def test_piergiaj_weights_are_recognised_when_given_to_another_model():
    shapes = parity_kit.kit("i3d_rgb").spec["keys"]
    theirs = {to_piergiaj(k): torch.zeros(s) for k, s in shapes.items() if "num_batches" not in k}
    with torch.device("meta"):
        i3d = key_shapes(I3D())
    assert "it looks like i3d (100%" in refusal(Net(), theirs, others=lambda: {"i3d": i3d})
