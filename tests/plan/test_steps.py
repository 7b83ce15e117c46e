"""The steps of planning, one by one, on tensors that exist as metadata only."""

from __future__ import annotations

from typing import Any

import pytest
from support.plans import checkpoint, view

from ckptconv.compute.sources import Fuse, Shift
from ckptconv.errors import CkptconvError
from ckptconv.models import lora
from ckptconv.models.lora.place import Placed
from ckptconv.plan import NeedsReading, Options, make_plan, unread
from ckptconv.plan.complete import completed
from ckptconv.plan.fuse import fuse
from ckptconv.plan.ledger import used_by
from ckptconv.plan.lora_mode import mode_of
from ckptconv.plan.onto_base import weights_of_base
from ckptconv.plan.records import Fill
from ckptconv.plan.rename import rename
from ckptconv.plan.stored import take_stock
from ckptconv.plan.weights import Weights

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"
Q = "model.layers.0.self_attn.q_proj"
PAIR = {f"{Q}.lora_A.default.weight": (2, 8), f"{Q}.lora_B.default.weight": (8, 2)}
BASE = {f"{Q}.base_layer.weight": (8, 8)}


def test_stored_names_come_back_after_wrappers_and_lora_are_taken_off() -> None:
    prefix = "_fsdp_wrapped_module.base_model.model."
    stored = take_stock(checkpoint({f"{prefix}{name}": shape for name, shape in {**BASE, **PAIR}.items()}))
    assert list(stored.parts.weights) == [f"{Q}.weight"]
    assert stored.name(f"{Q}.weight") == f"{prefix}{Q}.base_layer.weight"
    assert len(stored.views) == 3


def test_replicas_are_dropped_as_one_line() -> None:
    stored = take_stock(checkpoint({"a": (2, 3)}, copies=2))
    (dropped,) = stored.unread
    assert (dropped.name, dropped.nbytes, dropped.view) == ("2 copies", 48, None)


@pytest.mark.parametrize(
    ("tensors", "chosen", "mode"),
    [
        ({"a": (2,)}, None, "none"),
        ({**BASE, **PAIR}, None, "merge"),
        ({**BASE, **PAIR}, "both", "both"),
        ({**BASE, **PAIR}, "adapter", "adapter"),
        (PAIR, None, "adapter"),
    ],
)
def test_what_is_stored_decides_what_becomes_of_lora(
    tensors: dict[str, tuple[int, ...]], chosen: Any, mode: str
) -> None:
    found, notes = mode_of(take_stock(checkpoint(tensors)), Options(lora=chosen), None)
    assert found == mode
    assert bool(notes) == (
        chosen is None and mode != "none"
    )  # a choice that the user did not make is reported


@pytest.mark.parametrize(
    ("tensors", "options", "what"),
    [
        ({"a": (2,)}, Options(lora="merge"), "has no LoRA weights"),
        ({"a": (2,)}, Options(lora="both"), "has no LoRA weights"),
        ({"a": (2,)}, Options(lora_alpha=16), "has no LoRA weights"),
        (PAIR, Options(lora="merge"), "holds only LoRA weights"),
    ],
)
def test_what_is_asked_for_must_go_with_what_is_stored(
    tensors: dict[str, tuple[int, ...]], options: Options, what: str
) -> None:
    with pytest.raises(CkptconvError, match=what):
        mode_of(take_stock(checkpoint(tensors)), options, None)


def test_a_base_model_beside_stored_weights_is_refused() -> None:
    base = checkpoint({"a": (2,)})
    tensors = {name: Fill(tensor.view, tensor.view.shape, (name,)) for name, tensor in base.tensors.items()}
    with pytest.raises(CkptconvError, match="lacks nothing that the base model has"):
        completed(tensors, {}, base)
    with pytest.raises(CkptconvError, match="already contains the base weights"):
        mode_of(take_stock(checkpoint({**BASE, **PAIR})), Options(), base)


def test_what_was_trained_whole_replaces_the_base_models_weight() -> None:
    trained = {f"base_model.model.{HEAD.removesuffix('.weight')}.modules_to_save.default.weight": (9, 8)}
    stored = take_stock(checkpoint({**PAIR, **trained}))
    base = checkpoint({f"{Q}.weight": (8, 8), HEAD: (9, 8)})
    weights = weights_of_base(stored, None, base, unread)
    assert weights.tensors[HEAD] is stored.parts.weights[HEAD]
    assert [(name, reason) for name, _, reason in weights.left] == [
        (f"base: {HEAD}", "replaced by the adapter's copy of it")
    ]
    assert len(weights.stored) == 2


def test_dropping_mtp_layers_says_so_in_the_config_and_leaves_the_callers_alone() -> None:
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 1, "num_nextn_predict_layers": 1}
    weights = Weights({NORM: view((4,)), "model.layers.1.eh_proj.weight": view((4, 8))}, "hub", config)
    renamed = rename(weights, Options(mtp="drop"))
    assert list(renamed.tensors) == [NORM]
    assert [reason for _, _, reason in renamed.left] == ["an MTP layer (--mtp drop)"]
    assert renamed.config == {**config, "num_nextn_predict_layers": 0}
    assert config["num_nextn_predict_layers"] == 1


def placed(shape: tuple[int, int], weight: str = f"{Q}.weight") -> Placed:
    a, b = view((2, shape[1])), view((shape[0], 2))
    factors = lora.Factors(Q, (f"{Q}.lora_A.weight", a), (f"{Q}.lora_B.weight", b))
    return Placed(weight, shape, b, a, factors)


def test_an_update_is_merged_into_its_weight_and_into_no_other() -> None:
    named = {f"{Q}.weight": Fill(view((8, 8)), (8, 8), (Q,)), NORM: Fill(view((8,)), (8,), (NORM,))}
    fused = fuse(named, (placed((8, 8)),), {"lora_alpha": 4, "r": 2}, None)
    source = fused[f"{Q}.weight"].source
    assert isinstance(source, Fuse)
    assert source.scale == 2
    assert fused[NORM] is named[NORM]
    assert not isinstance(named[f"{Q}.weight"].source, Fuse)


@pytest.mark.parametrize(
    ("updates", "what"),
    [
        ((placed((8, 9)),), "does not fit its weight"),
        ((placed((8, 8), "absent"),), "the model has no weight of that name"),
        ((placed((8, 8)), placed((8, 8))), "two LoRA pairs update"),
    ],
)
def test_an_update_that_does_not_belong_is_refused(updates: tuple[Placed, ...], what: str) -> None:
    named = {f"{Q}.weight": Fill(view((8, 8)), (8, 8), (Q,))}
    with pytest.raises(CkptconvError, match=what):
        fuse(named, updates, {"lora_alpha": 4, "r": 2}, None)


def test_the_ledger_counts_a_weight_as_often_as_it_is_used_and_a_factor_once() -> None:
    base, other, left, right = view((4, 4)), view((4, 4)), view((4, 2)), view((2, 4))
    sources = [Fuse(base, left, right, 1.0), Fuse(other, left, right, 1.0), Shift(base, 1.0)]
    assert sorted(map(id, used_by(sources))) == sorted(map(id, [base, base, other, left, right]))
    assert sorted(map(id, used_by(sources, shared=[base]))) == sorted(map(id, [base, other, left, right]))


TIED = {
    "model_type": "qwen2",
    "architectures": ["Qwen2ForCausalLM"],
    "tie_word_embeddings": True,
    "vocab_size": 9,
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "intermediate_size": 6,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}
LAYER = {
    f"model.layers.0.{name}": shape
    for name, shape in {
        "self_attn.q_proj.weight": (8, 8), "self_attn.q_proj.bias": (8,),
        "self_attn.k_proj.weight": (4, 8), "self_attn.k_proj.bias": (4,),
        "self_attn.v_proj.weight": (4, 8), "self_attn.v_proj.bias": (4,), "self_attn.o_proj.weight": (8, 8),
        "mlp.gate_proj.weight": (6, 8), "mlp.up_proj.weight": (6, 8), "mlp.down_proj.weight": (8, 6),
        "input_layernorm.weight": (8,), "post_attention_layernorm.weight": (8,),
    }.items()
}  # fmt: skip


def test_a_plan_asks_about_stored_values_only_where_the_config_ties_them() -> None:
    stored = checkpoint({EMBED: (9, 8), HEAD: (9, 8), NORM: (8,), **LAYER})
    with pytest.raises(NeedsReading, match="must be read"):
        make_plan(stored, TIED, Options())
    asked: list[int] = []
    plan = make_plan(stored, TIED, Options(), equal=lambda one, two: bool(asked.append(one.numel) or True))
    assert asked == [72]
    assert plan.outputs.keys() == {EMBED, NORM, *LAYER}
    assert make_plan(stored, {**TIED, "tie_word_embeddings": False}, Options()).outputs.keys() >= {
        EMBED,
        HEAD,
    }


def test_a_plan_leaves_the_callers_config_as_it_was() -> None:
    config = dict(TIED)
    plan = make_plan(
        checkpoint({EMBED: (9, 8), HEAD: (9, 8), NORM: (8,), **LAYER}),
        config,
        Options(),
        equal=lambda one, two: False,
    )
    assert plan.config is not None
    assert (plan.config["tie_word_embeddings"], plan.config["dtype"]) == (False, "bfloat16")
    assert config == TIED
    assert any("differs from" in note for note in plan.notes)


def test_a_weight_that_two_outputs_hold_does_not_balance() -> None:
    """What no step may do: the ledger is asked, not trusted."""
    from ckptconv.plan.balance import balance
    from ckptconv.plan.records import Output

    one = view((4,))
    outputs = {name: Output(name, (4,), "float32", one, (name,)) for name in ("a", "b")}
    with pytest.raises(CkptconvError, match="does not balance"):
        balance([one], outputs, used_by([output.source for output in outputs.values()]), ())
