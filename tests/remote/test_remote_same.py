"""A checkpoint in a store gives the same answers and the same bytes as the same folder on a disk, for every format."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, unpacked
from support.store.same import compare
from support.store.server import Server

Made = Callable[[str], Path]

CASES = (
    "deepspeed_z1_bf16_w3",
    "deepspeed_z2_fp32_w4",
    "deepspeed_z3_bf16_w4",
    "deepspeed_pipe2_z1_w4",
    "deepspeed_tp2_z3_w4",
    "deepspeed_universal_z1_w2",
    "deepspeed_trainer_z2_w2",
    "deepspeed_lora_z2_w2",
    "deepspeed_lightning_z2_w2",
    "lightning_fsdp1_cuda_w2",
    "lightning_full",
    "nanotron_llama_tp2_pp2",
    "nanotron_llama_tied_tp2",
    "nemo_qwen2_tp2",
    "olmo_core_olmo2",
    "torchtune",
)
MADE = (
    "fsdp2_w4",
    "fsdp1_sharded_tensor_w4",
    "hsdp_w4",
    "fsdp2_tp_uneven_w4",
    "critic_w2",
    "lora_w4",
    "mixtral_w4",
    "dcp_tp_w4",
    "dcp_accelerate_w2",
    "dcp_titan_w2",
    "dcp_hf_tp_w4",
)
CUSTOM_CODE = "megatron/kimi_vl_mcb"  # its config names a file of code
MEGATRON = sorted(
    {
        str(path.relative_to(FIXTURES)).removesuffix(".tar.xz")
        for kind in ("megatron", "megatron_fsdp")
        for path in sorted(FIXTURES.glob(f"{kind}/*.tar.xz"))[::4]
    }
    | {CUSTOM_CODE}
)


@pytest.mark.parametrize("case", CASES)
def test_packed_checkpoints(s3: Server, case: str, tmp_path: Path) -> None:
    root = unpacked(case)
    address = s3.put("same", case, root)
    for run in sorted(root.rglob("run")) or [root]:
        compare(run, f"{address}/{run.relative_to(root)}", tmp_path / run.parent.name)


@pytest.mark.parametrize("case", MEGATRON)
def test_megatron(s3: Server, case: str, tmp_path: Path) -> None:
    """With the config, and custom code, of a model in the store too."""
    root, address = unpacked(case), s3.put("same", case, unpacked(case))
    compare(root / "run", f"{address}/run", tmp_path, root / "hf", f"{address}/hf")


@pytest.mark.parametrize("variant", MADE)
def test_made_checkpoints(s3: Server, made: Made, variant: str, tmp_path: Path) -> None:
    folder = made(variant)
    address = s3.put("same", variant, folder)
    inside = "/run" if variant.startswith("dcp") else ""
    compare(Path(f"{folder}{inside}"), f"{address}{inside}", tmp_path)


def test_a_model_folder(s3: Server, made: Made, tmp_path: Path) -> None:
    folder = made("fsdp2_w4") / "hub"
    compare(folder, s3.put("same", "hub", folder), tmp_path)
