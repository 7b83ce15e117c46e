"""Against a reference: what is equal is called equal, and what differs is found in its tensor, row and rank."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.verify_tools import NORM, Made, Q, only_wrong, poke, problems, put, rewrite, views, where_is

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import verify
from ckptconv.plan import Options


@pytest.mark.parametrize(
    "variant", ["fsdp2_w4", "hsdp_w4", "qwen3_moe_w4", "fsdp2_tp_uneven_w4", "fsdp2_tied_w4"]
)
def test_a_checkpoint_equals_its_reference_without_merging(made: Made, variant: str) -> None:
    result = verify(made(variant), against=made(variant) / "hub")
    only_wrong(result)
    assert result.compared == result.equal == result.tensors == len(views(made(variant) / "hub"))
    assert not result.differences


@pytest.mark.parametrize("variant", ["fsdp2_w4", "critic_w2", "qwen3_moe_w4"])
def test_a_merged_folder_equals_its_checkpoint(
    made: Made, merged_once: Callable[[str], Path], variant: str
) -> None:
    result = verify(merged_once(variant), against=made(variant))
    only_wrong(result)
    dtypes = result.layer("dtypes")
    assert dtypes is not None
    assert "cast to bfloat16" in dtypes.notes[0], (
        "masters are compared in the folder's dtype, and that is said"
    )
    assert " hashes" in (result.layer("integrity") or dtypes).found
    assert " checksums in " in (result.layer("integrity") or dtypes).found


def test_two_checkpoints(made: Made) -> None:
    only_wrong(verify(made("fsdp2_w4"), against=made("fsdp1_dtensor_w4")))


def test_a_reference_of_many_shards(made: Made, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    merge(made("fsdp2_w4"), out, options=Options(dtype="keep", max_shard_size="20KB"))
    assert len(list(out.glob("*.safetensors"))) > 2
    only_wrong(verify(made("fsdp2_w4") / "hub", against=out))
    only_wrong(verify(out, against=made("fsdp2_w4") / "hub"))


def test_a_flipped_byte_is_found_in_its_tensor_row_and_rank(
    made: Made, merged: Callable[[str], Path]
) -> None:
    out = merged("fsdp2_w4")
    poke(views(out)[Q], (31, 5), byte=1)
    result = verify(out, against=made("fsdp2_w4"))
    only_wrong(result, "integrity", "values")
    (found,) = result.differences
    assert (found.name, found.count, found.first_row, found.last_row, found.at) == (Q, 1, 31, 31, (31, 5))
    assert [i for i, differs in enumerate(found.rows) if differs] == [31 * 32 // 54]
    assert found.max_abs > 0
    assert found.max_rel > 0
    assert found.mean_abs == pytest.approx(found.max_abs / (54 * 27))
    assert found.stored_rank == (2,), "rows 28 to 41 are rank 2's"
    assert (found.slices[0].offsets, found.slices[0].sizes) == ((28, 0), (14, 27))
    assert list(problems(result, "integrity")) == [Q], "the receipt's hash names the same tensor"
    assert result.equal == result.compared - 1


def test_a_column_slice_names_its_rank(made: Made, copied: Callable[..., Path]) -> None:
    reference = copied("fsdp2_tp_uneven_w4", "hub")
    name = "model.layers.0.self_attn.o_proj.weight"
    poke(views(reference)[name], (2, 1))
    checkpoint = open_checkpoint(made("fsdp2_tp_uneven_w4"))
    wanted = checkpoint.rank_of[where_is(checkpoint.tensors[name].view, (2, 1))[0]]
    (found,) = verify(made("fsdp2_tp_uneven_w4"), against=reference).differences
    assert found.stored_rank == (wanted,)
    assert found.slices[0].sizes[1] < 54, "the slice is a part of the columns"


def test_experts_name_the_rank_that_stores_them(made: Made, copied: Callable[..., Path]) -> None:
    reference = copied("qwen3_moe_w4", "hub")
    name = "model.layers.1.mlp.experts.3.up_proj.weight"
    poke(views(reference)[name], (7, 7))
    (found,) = verify(made("qwen3_moe_w4"), against=reference).differences
    assert (found.name, found.at) == (name, (7, 7))
    assert found.stored_rank == (1,), "five experts over four ranks: two, two, one, none"
    assert found.slices[0].sizes == found.shape


def test_all_of_one_ranks_slice(made: Made, copied: Callable[..., Path]) -> None:
    reference = copied("fsdp2_w4", "hub")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q][14:28] += 0.5
        tensors["lm_head.weight"][26:52] -= 1

    rewrite(reference, change)
    result = verify(made("fsdp2_w4"), against=reference)
    only_wrong(result, "values")
    assert {d.name: d.stored_rank for d in result.differences} == {Q: (1,), "lm_head.weight": (1,)}
    values = result.layer("values")
    assert values is not None
    assert values.notes == ("all differences are in the slices of rank 1: is its file of the same step?",)
    assert "rows 14–27, stored by rank 1" in problems(result, "values")[Q]


def test_names_and_shapes(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["model.spare.weight"] = tensors.pop(NORM)
        tensors[Q] = np.ascontiguousarray(tensors[Q].T)

    rewrite(out, change)
    result = verify(out, against=made("fsdp2_w4") / "hub")
    only_wrong(result, "names", "shapes")
    assert "missing" in problems(result, "names")[NORM]
    assert "no such tensor" in problems(result, "names")["model.spare.weight"]
    assert "27×54" in problems(result, "shapes")[Q]
    assert result.compared == 25


def test_a_tied_head_may_be_written_or_not(made: Made, copied: Callable[..., Path]) -> None:
    tied, both = made("fsdp2_tied_w4") / "hub", copied("fsdp2_tied_w4", "hub")
    rewrite(both, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"]}))
    only_wrong(verify(tied, against=both))
    only_wrong(verify(both, against=tied))
    rewrite(
        both, lambda tensors: tensors.update({"lm_head.weight": tensors["model.embed_tokens.weight"] + 1})
    )
    only_wrong(verify(tied, against=both), "values")
    assert verify(both, against=tied).differences[0].name == "lm_head.weight"


def test_dtypes_that_differ_are_said_and_values_compared_in_the_wider(
    made: Made, merged_once: Callable[[str], Path]
) -> None:
    exact = verify(merged_once("fsdp2_w4"), against=made("fsdp2_w4") / "hub")
    only_wrong(exact, "dtypes", "values")
    assert exact.differences[0].dtype == "float32"
    values = exact.layer("values")
    assert values is not None
    assert values.notes == ("all differences come from rounding to bfloat16",)
    only_wrong(verify(merged_once("fsdp2_w4"), against=made("fsdp2_w4") / "hub", rtol=1 / 256), "dtypes")


def test_dtype_of_a_checkpoint_may_be_stated(made: Made, merged_once: Callable[[str], Path]) -> None:
    only_wrong(verify(made("fsdp2_w4"), against=merged_once("fsdp2_w4"), dtype="bfloat16"))
    only_wrong(verify(made("fsdp2_w4"), against=merged_once("fsdp2_w4"), dtype="float16"), "dtypes", "values")


def test_tolerance(made: Made, copied: Callable[..., Path]) -> None:
    reference = copied("fsdp2_w4", "hub")
    rewrite(reference, lambda tensors: tensors[Q].__iadd__(np.float32(1e-3)))
    only_wrong(verify(made("fsdp2_w4"), against=reference), "values")
    only_wrong(verify(made("fsdp2_w4"), against=reference, atol=1e-4), "values")
    result = verify(made("fsdp2_w4"), against=reference, atol=2e-3)
    only_wrong(result)
    values = result.layer("values")
    assert values is not None
    assert values.notes == ("the largest |Δ| within the tolerance is 0.001",)


def test_lora_against_what_peft_merged(made: Made, tmp_path: Path) -> None:
    reference = Path(shutil.copytree(made("lora_w4") / "hub", tmp_path / "peft"))
    shutil.copyfile(made("lora_w4") / "lora_merged.safetensors", reference / "model.safetensors")
    only_wrong(verify(made("lora_w4"), against=reference, rtol=1e-5, atol=1e-6))
    result = verify(made("lora_w4"), against=made("lora_w4") / "base", rtol=1e-3)
    only_wrong(result, "values")
    assert len(result.differences) == 14, (
        "every linear layer has an adapter; a merge that forgot them is found"
    )
    assert result.differences[0].stored_rank == (0, 1, 2, 3)


@pytest.mark.parametrize("value", [np.inf, np.nan])
def test_nan_and_inf(made: Made, copied: Callable[..., Path], value: float) -> None:
    checkpoint, same, other = copied("fsdp2_w4"), copied("fsdp2_w4", "hub"), made("fsdp2_w4") / "hub"
    put(views(checkpoint)[Q], (20, 3), value)
    put(views(same)[Q], (20, 3), value)
    result = verify(checkpoint, against=same)
    only_wrong(result, "integrity", "sanity")
    assert "row 20, stored by rank 1" in problems(result, "sanity")[Q]
    for tolerance in (0.0, 0.5):
        (found,) = verify(checkpoint, against=other, rtol=tolerance).differences
        assert (found.count, found.nonfinite, found.max_abs, found.at) == (1, 1, 0.0, (20, 3))
        (found,) = verify(made("fsdp2_w4"), against=same, rtol=tolerance).differences
        assert (found.count, found.nonfinite) == (1, 1)
