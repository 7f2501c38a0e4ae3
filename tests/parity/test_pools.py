"""PySlowFast's networks pooled as their heads do, by the global mean, and not at all, against its code."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from exports import Exports, heavy, heavy_in_ci, relative
from parity_kit import kit
from tolerances import MAP_PARITY, seed_parity
from vfx_engines import open_engine, read_spec

KITS = {
    "slow_4x16_r50": "SLOW_4x16_R50",
    "slowfast_4x16_r50": "SLOWFAST_4x16_R50",
    "x3d_xs": "X3D_XS",
    "mvitv2_s_16x4": "MVITv2_S_16x4",
    "rev_mvit_b_16x4": "REV_MVIT_B_16x4_CONV",
}
# The kit's case of the crop of tests; MViT has one size.
CASES = {"slow_4x16_r50": "test256", "slowfast_4x16_r50": "test256", "x3d_xs": "test182"}
# What a map of 8 positions under windows of 7 weighs.
WINDOWED = np.array([1, 2, 2, 2, 2, 2, 2, 1]) / 14


@pytest.fixture(scope="module")
def exports(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    pytest.importorskip("torch")
    return Exports(tmp_path_factory.mktemp("pools"), KITS)


def outputs(exports: Exports, name: str, precision: str, pool: str) -> dict[str, NDArray[np.float32]]:
    """What the engine gives on the kit's windows."""
    from vfx_export.catalogue import find
    from vfx_export.exporting import export_model

    path = exports.folder / f"{name}_{precision}_{pool}.onnx"
    if not path.exists():
        export_model(
            find(name),
            path,
            checkpoint=exports.checkpoint(name),
            precision=precision,  # type: ignore[arg-type]
            head=True,
            pool=pool,  # type: ignore[arg-type]
        )
    spec = read_spec(path)
    assert [item.pool for item in spec.outputs][:-1] == [pool] * (len(spec.outputs) - 1)
    with open_engine(path, backend="openvino") as engine:
        got = engine.run(kit(KITS[name]).images(CASES.get(name, "main")))
    assert {item.name: (len(got[item.name]), *item.shape) for item in spec.outputs} == {
        key: value.shape for key, value in got.items()
    }
    return got


# Two networks in CI: an export takes long.
@pytest.mark.parametrize(
    ("name", "precision"),
    [
        heavy_in_ci("x3d_xs", "fp32"),
        heavy_in_ci("slow_4x16_r50", "fp32"),
        *(heavy(name, "fp32") for name in ("slowfast_4x16_r50", "mvitv2_s_16x4", "rev_mvit_b_16x4")),
        *(heavy(name, precision) for name in KITS for precision in ("fp16", "bf16")),
    ],
)
def test_maps_pooled_afterwards_are_the_golden_features(exports: Exports, name: str, precision: str) -> None:
    golden, case = kit(KITS[name]), CASES.get(name, "main")
    got = outputs(exports, name, precision, "none")
    allowed = seed_parity(precision, golden.spec["input_seed_difference"])
    maps = [array for key, array in got.items() if key != "logits"]
    if name == "mvitv2_s_16x4":
        means = maps[0][:, 0]  # the class token comes first
    elif name == "rev_mvit_b_16x4":
        means = maps[0].mean(1)
    else:
        means = np.concatenate([array.mean((2, 3, 4)) for array in maps], 1)
    assert relative(means, golden.pixels[f"{case}.features"]) < allowed
    if name.startswith("slow"):
        windowed = [np.einsum("bcthw,h,w->bc", array, WINDOWED, WINDOWED) / array.shape[2] for array in maps]
        assert relative(np.concatenate(windowed, 1), golden.pixels[f"{case}.window_features"]) < allowed
    elif name != "slowfast_4x16_r50":
        assert relative(got["logits"], golden.pixels[f"{case}.logits"]) < allowed


@pytest.mark.parametrize(
    ("name", "precision"),
    [
        heavy("slow_4x16_r50", "fp32"),
        heavy("slowfast_4x16_r50", "fp32"),
        heavy("slowfast_4x16_r50", "fp16"),
        heavy("slowfast_4x16_r50", "bf16"),
    ],
)
def test_the_global_mean_is_the_golden_one(exports: Exports, name: str, precision: str) -> None:
    golden = kit(KITS[name])
    got = outputs(exports, name, precision, "global")
    allowed = seed_parity(precision, golden.spec["input_seed_difference"])
    assert relative(got["features"], golden.pixels["test256.features"]) < allowed


@pytest.mark.slow
@pytest.mark.ci
def test_the_global_mean_of_x3d_comes_before_its_last_product(exports: Exports) -> None:
    """As PySlowFast's head does it where it pools adaptively: mean, lin_5, ReLU."""
    weights = {key: value.numpy() for key, value in exports.state("x3d_xs").items()}
    x = outputs(exports, "x3d_xs", "fp32", "none")["map"]
    x = np.einsum("oc,bcthw->bothw", weights["head.conv_5.weight"][:, :, 0, 0, 0], x)
    norm = {leaf: weights[f"head.conv_5_bn.{leaf}"] for leaf in ("weight", "bias", "running_mean")}
    scale = norm["weight"] / np.sqrt(weights["head.conv_5_bn.running_var"] + 1e-5)
    shift = norm["bias"] - norm["running_mean"] * scale
    x = np.maximum(x * scale[:, None, None, None] + shift[:, None, None, None], 0).mean((2, 3, 4))
    want = np.maximum(x @ weights["head.lin_5.weight"][:, :, 0, 0, 0].T, 0)
    got = outputs(exports, "x3d_xs", "fp32", "global")
    assert relative(got["features"], want) < MAP_PARITY


@pytest.mark.slow
def test_the_global_mean_of_mvit_leaves_the_class_token_out(exports: Exports) -> None:
    """PySlowFast's USE_MEAN_POOLING: the mean of the grid, then the norm."""
    import torch

    from vfx_export.catalogue import find

    module = find("mvitv2_s_16x4").network(False).eval()
    module.load_state_dict(exports.state("mvitv2_s_16x4"))
    seen = []
    module.blocks[-1].register_forward_hook(lambda *call: seen.append(call[2]))
    module.pool = "global"
    with torch.no_grad():
        module(torch.from_numpy(kit(KITS["mvitv2_s_16x4"]).images()))
        want = module.norm(seen[0][0].mean(1)).numpy()
    got = outputs(exports, "mvitv2_s_16x4", "fp32", "global")
    assert relative(got["features"], want) < MAP_PARITY


def test_the_pool_is_chosen_before_a_network_runs(exports: Exports) -> None:
    """The module that the engines above are made of, without an export."""
    import torch

    from vfx_export.catalogue import find

    golden = kit("SLOW_4x16_R50")
    module = find("slow_4x16_r50").network(False).eval()
    module.load_state_dict(exports.state("slow_4x16_r50"))
    for pool, theirs in (("global", "features"), ("head", "window_features")):
        module.pool = pool
        with torch.no_grad():
            (got,) = module(torch.from_numpy(golden.images("test256")))
        assert relative(got.numpy(), golden.pixels[f"test256.{theirs}"]) < MAP_PARITY


@pytest.mark.parametrize(
    ("name", "frames", "shapes"),
    [
        ("c2d_8x8_r50", None, {"map": (2048, 4, 8, 8)}),
        ("c2d_nopool_8x8_r50", None, {"map": (2048, 8, 8, 8)}),
        ("slowfast_8x8_r50", None, {"slow_map": (2048, 8, 8, 8), "fast_map": (256, 32, 8, 8)}),
        ("slowfast_4x16_r50", 16, {"slow_map": (2048, 2, 8, 8), "fast_map": (256, 16, 8, 8)}),
        ("slowfast_16x8_r101_ava", None, {"slow_map": (2048, 16, 16, 16), "fast_map": (256, 64, 16, 16)}),
        ("x3d_s", None, {"map": (192, 13, 6, 6)}),
        ("x3d_l", None, {"map": (192, 16, 12, 12)}),
        ("mvit_b_16x4", None, {"tokens": (1 + 8 * 7 * 7, 768)}),
        ("mvitv2_l_40x3", None, {"tokens": (1 + 20 * 10 * 10, 1152)}),
        ("rev_mvit_b_16x4", None, {"tokens": (8 * 7 * 7, 1536)}),
    ],
)
def test_maps_have_the_shapes_of_what_enters_the_head(
    name: str, frames: int | None, shapes: dict[str, tuple[int, ...]]
) -> None:
    torch = pytest.importorskip("torch")
    from vfx_export.catalogue import find
    from vfx_export.exporting import map_outputs

    row = find(name)
    with torch.device("meta"):
        module = row.network(False)
    # Memory that nothing is written to: no network is computed here.
    module = module.to_empty(device="cpu")
    count = row.windows(frames).frames
    module.pool = "none"
    found = map_outputs(module, row.output(count), row.input(count).shape)
    assert {item.name: item.shape for item in found} == shapes


def test_every_row_of_the_zoo_has_other_pools_and_no_other_row() -> None:
    pytest.importorskip("torch")
    from vfx_engines.errors import UsageError
    from vfx_export.catalogue import CATALOGUE
    from vfx_export.zoo import mvit, pyslowfast, x3d

    zoo = {row.name for row in (*pyslowfast.ROWS, *x3d.ROWS, *mvit.ROWS)}
    assert len(zoo) == 24
    assert {row.name for row in CATALOGUE if row.pools} == zoo
    with pytest.raises(UsageError, match="--pool none: i3d gives its published features alone"):
        CATALOGUE[0].check_pool("none")


@pytest.mark.parametrize("which", ["pyslowfast", "x3d", "mvit"])
def test_logits_say_what_makes_them_probabilities(which: str) -> None:
    """Sigmoid where a clip has several classes: Charades' 157 actions and AVA's 80."""
    pytest.importorskip("torch")
    import importlib

    for row in importlib.import_module(f"vfx_export.zoo.{which}").ROWS:
        several = "charades" in row.name or "ava" in row.name
        assert row.logits().activation == ("sigmoid" if several else "softmax")
