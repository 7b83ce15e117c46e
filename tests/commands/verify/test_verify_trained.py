"""Was it trained? The base model's bytes under another name are found; frozen parts are said and are no fault."""

import shutil
from collections.abc import Callable
from pathlib import Path

from support.verify_tools import Made, Q, only_wrong, problems, rewrite, views

from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import verify
from ckptconv.plan import Options


def test_the_base_model_itself_is_untrained(made: Made, copied: Callable[..., Path], tmp_path: Path) -> None:
    base = made("fsdp2_w4") / "hub"
    for target in (copied("fsdp2_w4", "hub"), made("fsdp2_w4")):
        result = verify(target, base=base)
        only_wrong(result, "trained")
        assert "untrained" in problems(result, "trained")["the weights"]
        assert "0 of 27 tensors differ" in (result.layer("trained") or result.layers[0]).found


def test_one_changed_bit_is_training(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    rewrite(out, lambda tensors: tensors[Q].__imul__(1.5))
    result = verify(out, base=made("fsdp2_w4") / "hub")
    only_wrong(result)
    trained = result.layer("trained")
    assert trained is not None
    assert trained.found == "1 of 27 tensors differ from the base, 26 are bit-equal to it"
    assert "all 12 of model.layers.0 are the base's: frozen?" in trained.notes


def test_a_base_in_another_dtype_and_names(
    made: Made, merged_once: Callable[[str], Path], tmp_path: Path
) -> None:
    """What is compared are the target's bits: a bf16 folder of an fp32 base is still the base."""
    only_wrong(verify(merged_once("fsdp2_w4"), base=made("fsdp2_w4") / "hub"), "trained")
    merge(made("qwen3_moe_w4"), tmp_path / "module", options=Options(layout="module", dtype="keep"))
    only_wrong(verify(made("qwen3_moe_w4") / "hub", base=tmp_path / "module"), "trained")


def test_lora_that_was_merged_and_lora_that_was_not(made: Made, tmp_path: Path) -> None:
    base = made("lora_w4") / "base"
    merge(made("lora_w4"), tmp_path / "out", options=Options(dtype="keep"))
    result = verify(tmp_path / "out", base=base)
    only_wrong(result)
    assert "14 of 27 tensors differ" in (result.layer("trained") or result.layers[0]).found, "targets only"
    forgotten = Path(shutil.copytree(base, tmp_path / "forgotten"))
    only_wrong(verify(forgotten, base=base), "trained")


def test_a_frozen_tower_is_said(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("qwen2_5_vl_w4", "hub")

    def change(tensors: dict) -> None:  # type: ignore[type-arg]
        for name in tensors:
            if not name.startswith("visual."):
                tensors[name] += 1

    rewrite(out, change)
    result = verify(out, base=made("qwen2_5_vl_w4") / "hub")
    only_wrong(result)
    tower = sum(name.startswith("visual.") for name in views(out))
    trained = result.layer("trained")
    assert trained is not None
    assert trained.notes == (f"all {tower} of visual are the base's: frozen?",)


def test_another_model_and_an_adapter_are_not_judged(made: Made) -> None:
    result = verify(made("smalldims_w4"), base=made("fsdp2_w4") / "hub")
    only_wrong(result)
    assert "no tensor is in the base" in (result.layer("trained") or result.layers[0]).found
    result = verify(
        made("lora_w4") / "adapter", against=made("lora_w4") / "adapter", base=made("lora_w4") / "base"
    )
    only_wrong(result)
    assert "an adapter has no tensors" in (result.layer("trained") or result.layers[0]).found
