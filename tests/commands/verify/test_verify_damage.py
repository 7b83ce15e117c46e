"""What goes wrong in conversions, done on purpose: a verification says what it is and where."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.helpers import ROLE
from support.verify_tools import Made, Q, only_wrong, poke, problems, rewrite, views

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import Difference, Verified, verify

Arrays = dict[str, np.ndarray]
K, V = Q.replace("q_proj", "k_proj"), Q.replace("q_proj", "v_proj")
O = Q.replace("q_proj", "o_proj")  # noqa: E741
HEAD = 6


def differing(result: Verified) -> dict[str, Difference]:
    only_wrong(result, "values")
    return {found.name: found for found in result.differences}


def changed(copied: Callable[..., Path], change: Callable[[Arrays], None], variant: str = "fsdp2_w4") -> Path:
    out = copied(variant, "hub")
    rewrite(out, change)
    return out


def test_a_flipped_bit(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    poke(views(out)[O], (3, 50), byte=3)
    found = differing(verify(out, against=made("fsdp2_w4")))[O]
    assert (found.count, found.at, found.stored_rank, found.looks_like) == (1, (3, 50), (0,), "")
    assert (found.first_column, found.last_column) == (50, 50)
    assert [n for n, differs in enumerate(found.columns) if differs] == [50 * 32 // 54]


def test_swapped_layers(made: Made, copied: Callable[..., Path]) -> None:
    def change(tensors: Arrays) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            other = name.replace("layers.0", "layers.1")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    result = verify(changed(copied, change), against=made("fsdp2_w4"))
    found = differing(result)
    assert len(found) == 24
    assert all(
        item.looks_like == f"swapped with {name.replace('layers.0', 'layers.1')}"
        for name, item in found.items()
        if "layers.0" in name
    )
    values = result.layer("values")
    assert values is not None
    assert "model.layers.0 and model.layers.1 are swapped: 12 tensors" in values.notes


def test_a_layer_in_the_place_of_another(made: Made, copied: Callable[..., Path]) -> None:
    def change(tensors: Arrays) -> None:
        for name in [name for name in tensors if name.startswith("model.layers.0.")]:
            tensors[name] = tensors[name.replace("layers.0", "layers.1")]

    out = changed(copied, change)
    result = verify(out, against=made("fsdp2_w4") / "hub")
    only_wrong(result, "values", "sanity")
    assert "has the values of the reference's model.layers.1." in result.differences[0].looks_like
    assert "has the weights of model.layers.0, bit for bit" in problems(result, "sanity")["model.layers.1"]
    alone = verify(out)
    only_wrong(alone, "sanity")
    assert list(problems(alone, "sanity")) == ["model.layers.1"]


def test_a_matrix_that_stands_twice_is_said_and_no_more(copied: Callable[..., Path]) -> None:
    result = verify(changed(copied, lambda tensors: tensors.update({K: tensors[V]})))
    only_wrong(result)
    sanity = result.layer("sanity")
    assert sanity is not None
    assert f"1 matrix has the weights of another: {K} and {V}" in sanity.notes


def test_a_transposed_square(made: Made, copied: Callable[..., Path]) -> None:
    with_tower = made("qwen2_5_vl_w4") / "hub"
    squares = [
        n for n, view in views(with_tower).items() if len(view.shape) == 2 and len(set(view.shape)) == 1
    ]

    def change(tensors: Arrays) -> None:
        tensors[squares[0]] = np.ascontiguousarray(tensors[squares[0]].T)

    found = differing(verify(changed(copied, change, "qwen2_5_vl_w4"), against=with_tower))
    assert {name: item.looks_like for name, item in found.items()} == {squares[0]: "it is transposed"}


def test_the_wrong_ranks_slice(made: Made, copied: Callable[..., Path]) -> None:
    def change(tensors: Arrays) -> None:
        tensors[Q][14:28] = tensors[Q][:14]

    found = differing(verify(changed(copied, change), against=made("fsdp2_w4")))[Q]
    assert (found.first_row, found.last_row, found.stored_rank) == (14, 27, (1,))
    assert found.looks_like == "rank 0's slice is in the place of rank 1's"
    alike = verify(changed(copied, change, "fsdp2_tied_w4"), against=made("fsdp2_tied_w4") / "hub")
    assert alike.differences[0].looks_like == "rows 14–27 are the reference's rows 0–13"


def test_the_wrong_ranks_columns(made: Made, copied: Callable[..., Path]) -> None:
    def change(tensors: Arrays) -> None:
        tensors[O] = np.roll(tensors[O], 27, axis=1)

    found = differing(
        verify(changed(copied, change, "fsdp2_tp_uneven_w4"), against=made("fsdp2_tp_uneven_w4"))
    )
    assert found[O].looks_like == (
        "columns 0–26 are the reference's columns 27–53; columns 27–53 are the reference's columns 0–26"
    )


def test_permuted_qkv(made: Made, copied: Callable[..., Path]) -> None:
    """Megatron's groups of query heads with a key and a value each, cut as if all queries came first."""

    def change(tensors: Arrays) -> None:
        groups = len(tensors[K]) // HEAD
        parts = [tensors[name].reshape(groups, -1, tensors[name].shape[-1]) for name in (Q, K, V)]
        fused = np.concatenate(parts, 1).reshape(-1, parts[0].shape[-1])
        ends = np.cumsum([len(tensors[name]) for name in (Q, K)])
        for name, part in zip((Q, K, V), np.split(fused, ends), strict=True):
            tensors[name] = np.ascontiguousarray(part)

    reference = made("fsdp2_w4") / "hub"
    found = differing(verify(changed(copied, change), against=reference))
    assert set(found) <= {Q, K, V}
    assert K in found[Q].looks_like or V in found[Q].looks_like, found[Q].looks_like


@pytest.mark.parametrize("back", [False, True])
def test_rotary_halves_and_pairs(made: Made, copied: Callable[..., Path], back: bool) -> None:
    def change(tensors: Arrays) -> None:
        heads = tensors[Q].reshape(-1, HEAD, tensors[Q].shape[-1])
        order = np.arange(HEAD).reshape(2, -1).T.reshape(-1)
        tensors[Q] = np.ascontiguousarray(
            heads[:, np.argsort(order) if back else order].reshape(tensors[Q].shape)
        )

    found = differing(verify(changed(copied, change), against=made("fsdp2_w4") / "hub"))
    said = (
        f"heads of {HEAD} rows are in halves, as RoPE wants it; the reference's are interleaved"
        if back
        else f"heads of {HEAD} rows are in RoPE's interleaved order, the reference's in halves"
    )
    assert {name: item.looks_like for name, item in found.items()} == {Q: said}


def test_rows_in_another_order(made: Made, copied: Callable[..., Path]) -> None:
    def change(tensors: Arrays) -> None:
        tensors[Q] = tensors[Q][np.random.default_rng(1).permutation(len(tensors[Q]))]

    found = differing(verify(changed(copied, change), against=made("fsdp2_w4") / "hub"))
    assert found[Q].looks_like == "the same rows in another order"


def test_one_ranks_slice_of_an_older_step(made: Made, copied: Callable[..., Path]) -> None:
    import torch

    stale = copied("fsdp2_w4")
    path = stale / ROLE / "model_world_size_4_rank_1.pt"
    state = torch.load(path, weights_only=False)
    for tensor in state.values():
        local = tensor.to_local() if hasattr(tensor, "to_local") else tensor
        local.mul_(1.01)
    torch.save(state, path)
    result = verify(stale, against=made("fsdp2_w4") / "hub")
    found = differing(result)
    assert len(found) > 20
    assert {item.stored_rank for item in found.values()} == {(1,)}
    values = result.layer("values")
    assert values is not None
    assert values.notes == ("all differences are in the slices of rank 1: is its file of the same step?",)
    assert all(item.max_rel == pytest.approx(0.01, rel=0.01) for item in found.values())


def test_the_receipt_names_the_rank_without_the_checkpoint(
    made: Made, merged: Callable[[str], Path], tmp_path: Path
) -> None:
    out, good = merged("fsdp2_w4"), tmp_path / "good"
    merge(made("fsdp2_w4"), good)
    poke(views(out)[Q], (31, 5), byte=1)
    result = verify(out, against=good)
    only_wrong(result, "integrity", "values")
    assert result.differences[0].stored_rank == (2,)
    slices = result.differences[0].slices
    assert (slices[0].offsets, slices[0].sizes) == ((28, 0), (14, 27))
    receipt = json.loads((good / "ckptconv.json").read_text())
    parts = receipt["cuts"][receipt["tensors"][Q]["cut"]]
    assert parts == [
        [0, [0, 0], [14, 27]],
        [1, [14, 0], [14, 27]],
        [2, [28, 0], [14, 27]],
        [3, [42, 0], [12, 27]],
    ]
    for folder in (out, good):
        (folder / "ckptconv.json").unlink()
    assert verify(out, against=good).differences[0].slices == ()


def test_the_receipt_agrees_with_the_checkpoint(made: Made, tmp_path: Path) -> None:
    """2-D cuts, and tensors whose shape is not the stored one."""
    from ckptconv.commands.verify.sides import open_side
    from ckptconv.tensors.source_spec import SourceSpec

    for variant in ("fsdp2_tp_uneven_w4", "qwen3_moe_w4"):
        merge(made(variant), tmp_path / variant)
        checkpoint, side = open_checkpoint(made(variant)), open_side(SourceSpec(tmp_path / variant))
        assert side.cuts
        for name, parts in side.cuts.items():
            assert sum(int(np.prod(part.sizes)) for part in parts) == side.tensors[name].source.numel
            if name in checkpoint.tensors:
                for chunk in checkpoint.tensors[name].view.chunks:
                    (part,) = (p for p in parts if p.rank == checkpoint.rank_of[chunk.file])
                    assert all(a >= b for a, b in zip(chunk.offsets, part.offsets, strict=True))


def test_a_copied_folder_is_not_changed_by_all_this(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made("fsdp2_w4") / "hub", tmp_path / "same")
    only_wrong(verify(tmp_path / "same", against=made("fsdp2_w4")))


def test_a_difference_beyond_rounding_is_not_called_rounding(
    made: Made, merged: Callable[[str], Path]
) -> None:
    out = merged("fsdp2_w4")
    poke(views(out)[Q], (31, 5), flip=8)
    result = verify(out, against=made("fsdp2_w4") / "hub")
    only_wrong(result, "dtypes", "integrity", "values")
    values = result.layer("values")
    assert values is not None
    assert not any("rounding" in note for note in values.notes)
