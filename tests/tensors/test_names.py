"""Names of tensors: natural order, and names without the segments of wrappers."""

from __future__ import annotations

import pytest

from ckptconv.tensors.names import natural, without_wrappers


def test_layer_two_comes_before_layer_ten() -> None:
    assert sorted(["layers.10.w", "layers.2.w", "embed"], key=natural) == [
        "embed",
        "layers.2.w",
        "layers.10.w",
    ]


@pytest.mark.parametrize(
    ("name", "bare"),
    [
        ("_orig_mod.model.norm.weight", "model.norm.weight"),
        ("model.layers.0._checkpoint_wrapped_module.mlp.weight", "model.layers.0.mlp.weight"),
        ("_forward_module._orig_mod._fsdp_wrapped_module.norm.weight", "norm.weight"),
        ("module.norm.weight", "module.norm.weight"),
        ("my_orig_mod.norm.weight", "my_orig_mod.norm.weight"),
        ("norm._orig_mod", "norm._orig_mod"),
    ],
)
def test_only_whole_segments_of_wrappers_are_taken_off(name: str, bare: str) -> None:
    assert without_wrappers(name) == bare
