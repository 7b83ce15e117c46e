"""Every checkpoint there is: which model, sharded how, and what it shows. README.md tells it in prose."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import lora
import models
from configs import MODEL_TYPES
from models import arch
from names import group_of, world_of
from shard import Sharder, column_first, fsdp1, fsdp2, fsdp2_tp, mesh_2d, mesh_shuffled
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import PreTrainedModel


@dataclass(frozen=True)
class Variant:
    """One checkpoint; `build` gives the whole model with equal values on every rank."""

    name: str
    build: Callable[[], nn.Module]
    shard: Sharder
    shows: str
    before: Callable[[nn.Module, Path], None] | None = None  # writes reference files from the whole model
    keep: Callable[[str], bool] = lambda name: True  # which keys the rank files hold
    after: Callable[[Path], None] | None = None  # writes files beside the rank files

    @property
    def world(self) -> int:
        """The number of ranks."""
        return world_of(self.name)

    @property
    def group(self) -> str:
        """The launch that makes it."""
        return group_of(self.name)


def write_hub(model: nn.Module, folder: Path) -> None:
    """hub/: the same weights under the Hub's names, by the model's own save_pretrained."""
    assert isinstance(model, PreTrainedModel)
    model.save_pretrained(folder / "hub")


def fsdp2_claiming_tied(model: nn.Module) -> nn.Module:
    """FSDP2 of an untied model whose config says, from here on, that it is tied."""
    model.config.tie_word_embeddings = True
    return fsdp2()(model)


def write_value_head_hub(model: nn.Module, folder: Path) -> None:
    """hub/ as TRL writes it: the language model's names without a prefix, and v_head.*."""
    assert isinstance(model, models.ModelWithValueHead)
    state = models.ModelWithBareValueHead.state_dict(model)
    model.pretrained_model.save_pretrained(folder / "hub", state_dict=state)


def of_model(name: str, build: Callable[[], nn.Module], shard: Sharder, shows: str) -> Variant:
    """A transformers model, with hub/."""
    return Variant(name, build, shard, shows, before=write_hub)


def of_lora(name: str, shows: str, build: Callable[[], nn.Module] = lora.lora, **options: object) -> Variant:
    """A peft model, with base/, adapter/, the merged model as hub/ and lora_merged.safetensors."""
    options = {"after": lora.write_meta} | options
    return Variant(name, build, fsdp2(), shows, before=lora.write_peft, **options)  # type: ignore[arg-type]


def hybrid() -> DeviceMesh:
    """verl's mesh when fsdp_size is smaller than the world."""
    return mesh_2d("ddp", "fsdp")


WORLD_1 = (
    of_model("ws1_fsdp1", models.qwen2, fsdp1(), "one rank: plain tensors, as attributes of a subclass"),
    of_model("ws1_fsdp2", models.qwen2, fsdp2(), "one rank: DTensors over a mesh of one"),
)
WORLD_2 = (
    of_model("fsdp1_dtensor_w2", models.qwen2, fsdp1(), "FSDP1 with a mesh: DTensors"),
    of_model("fsdp1_sharded_tensor_w2", models.qwen2, fsdp1(None, True), "FSDP1, no mesh: ShardedTensors"),
    of_model("fsdp1_flat_noorig_w2", models.qwen2, fsdp1(None, False), "the same from flat parameters"),
    of_model(
        "shard1_w2",
        models.qwen2_even,
        fsdp2(shard_placement_fn=column_first),
        "matrices sharded along columns, vectors along their only dim",
    ),
    of_model("critic_w2", models.critic, fsdp2(), "a critic: score.weight and score.bias for one label"),
    Variant(
        "trl_vhead_w2",
        models.ModelWithValueHead,
        fsdp2(),
        "TRL's value head as verl stores it: pretrained_model.* and v_head.summary.*",
        before=write_value_head_hub,
    ),
    Variant(
        "trl_vhead_bare_w2",
        models.ModelWithBareValueHead,
        fsdp2(),
        "TRL's own names: v_head.summary.* beside names without a prefix",
        before=write_value_head_hub,
    ),
    Variant("buffers_w2", models.Buffers, fsdp2(), "whole and 0-d buffers; the first key is one"),
    of_lora("lora_only_w2", "save_lora_only: no weights but the adapter's", keep=lora.is_adapter),
    of_lora("lora_noalpha_w2", "LoRA without lora_train_meta.json: alpha is unknown", after=None),
    of_lora("lora_bf16_w2", "LoRA in bf16: fusing must not round twice", build=lora.lora_bf16),
    *(
        of_model(f"arch_{t}_w2", lambda t=t: arch(t), fsdp2(), f"transformers' {t}, module names")
        for t in MODEL_TYPES
    ),
)
WORLD_4 = (
    of_model("fsdp2_w4", models.qwen2, fsdp2(), "verl's FSDP2; no dim is a multiple of 4"),
    of_model(
        "fsdp2_tied_w4",
        lambda: models.qwen2(tie_word_embeddings=True),
        fsdp2(),
        "tied: both names are stored",
    ),
    of_model(
        "fsdp2_untied_but_config_tied_w4",
        models.qwen2,
        fsdp2_claiming_tied,
        "the config says tied, the head differs from the embedding; hub/ says untied",
    ),
    of_model("fsdp2_bf16_w4", models.qwen2_bf16, fsdp2(), "bf16 parameters with fp32 norms"),
    of_model("hsdp_w4", models.qwen2, fsdp2(hybrid), "2 x 2: Replicate over ddp, Shard over fsdp"),
    of_model("hsdp_oddnames_w4", models.qwen2, fsdp2(mesh_shuffled), "unknown dim names, ranks out of order"),
    of_model("hsdp_fsdp1_w4", models.qwen2, fsdp1(hybrid), "FSDP1's HYBRID_SHARD over a 2 x 2 mesh"),
    of_model("fsdp2_tp_even_w4", models.qwen2_even, fsdp2_tp, "FSDP + TP: _StridedShard, even dims"),
    of_model("fsdp2_tp_uneven_w4", models.qwen2, fsdp2_tp, "FSDP + TP, no dim is a multiple"),
    Variant("smalldims_w4", models.SmallDims, fsdp2(), "dims of 1, 2 and 3: ranks without data"),
    Variant("smalldims_fsdp1_w4", models.SmallDims, fsdp1(), "the same as FSDP1's DTensors"),
    of_model("fsdp1_dtensor_w4", models.qwen2, fsdp1(use_orig_params=True), "FSDP1 with a mesh: DTensors"),
    Variant(
        "fsdp1_sharded_tensor_w4",
        models.SmallDims,
        fsdp1(None, True),
        "ShardedTensors, some ranks with an empty list of shards",
    ),
    of_model("qwen3_moe_w4", lambda: arch("qwen3_moe"), fsdp2(), "experts fused, 5 of them over 4 ranks"),
    of_model("mixtral_w4", lambda: arch("mixtral"), fsdp2(), "experts fused, w1 / w2 / w3 on the Hub"),
    of_model("qwen2_5_vl_w4", lambda: arch("qwen2_5_vl"), fsdp2(), "prefixes other than on the Hub"),
    of_lora("lora_w4", "LoRA over the whole model, with verl's lora_train_meta.json"),
)
VARIANTS = (*WORLD_1, *WORLD_2, *WORLD_4)
