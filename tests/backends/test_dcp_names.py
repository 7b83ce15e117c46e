"""Which entries of a state dict are the model's, from names and the keys that lead to them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from ckptconv.backends.dcp.names import Chosen, choose_model
from ckptconv.errors import CkptconvError

CAUSAL = (
    "model.embed_tokens.weight",
    "model.layers.0.self_attn.q_proj.weight",
    "model.norm.weight",
    "lm_head.weight",
)
TIED = CAUSAL[:-1]  # a tied head that was not stored
BASE = tuple(name.removeprefix("model.") for name in TIED)
VLM = (
    "model.visual.blocks.0.attn.qkv.weight",
    "model.language_model.layers.0.mlp.up_proj.weight",
    "lm_head.weight",
)
OLD_VLM = (
    "language_model.model.layers.0.mlp.up_proj.weight",
    "language_model.lm_head.weight",
    "vision_tower.encoder.layers.0.mlp.fc1.weight",
    "multi_modal_projector.linear_1.weight",
)
TITAN = ("tok_embeddings.weight", "layers.0.attention.wq.weight", "norm.weight", "output.weight")
GPT2 = ("transformer.wte.weight", "transformer.h.0.attn.c_attn.weight", "lm_head.weight")
PEFT = tuple(f"base_model.model.model.layers.0.self_attn.q_proj.lora_{side}.weight" for side in "AB")
TRL = (
    "pretrained_model.model.layers.0.mlp.up_proj.weight",
    "pretrained_model.lm_head.weight",
    "v_head.summary.weight",
)
MODELS = {
    "causal": CAUSAL,
    "tied": TIED,
    "base": BASE,
    "vlm": VLM,
    "old_vlm": OLD_VLM,
    "titan": TITAN,
    "gpt2": GPT2,
    "tied_gpt2": GPT2[:-1],
    "peft": PEFT,
    "trl": TRL,
}


def tensors(*names: str, **nested: Any) -> dict[str, Any]:
    """A state dict: names lie at its top, keywords are dicts in it. A value is a shape, or None for no tensor."""
    return {**dict.fromkeys(names, (4, 4)), **nested}


def flatten(state: dict[str, Any], path: tuple[str | int, ...] = ()) -> dict[tuple[str | int, ...], Any]:
    found: dict[tuple[str | int, ...], Any] = {}
    for key, value in state.items():
        found.update(flatten(value, (*path, key)) if isinstance(value, dict) else {(*path, key): value})
    return found


def choose(state: dict[str, Any], with_paths: bool = True) -> Chosen:
    flat = flatten(state)
    names = {".".join(map(str, path)): path for path in flat}
    paths = names if with_paths else {name: (name,) for name in names}
    return choose_model(
        paths, {".".join(map(str, path)): shape for path, shape in flat.items()}, Path("here")
    )


def own(chosen: Chosen) -> set[str]:
    return set(chosen.names.values())


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(
    "around", [(), ("model",), ("app", "model"), ("state_dict",), ("my_network",)], ids=str
)
def test_keys_around_a_model_go_and_its_own_names_stay(model: str, around: tuple[str, ...]) -> None:
    state = tensors(*MODELS[model])
    for key in reversed(around):
        state = {key: state}
    assert own(choose(state)) == set(MODELS[model])


@pytest.mark.parametrize("model", ["causal", "vlm", "gpt2", "titan", "peft", "trl"])
@pytest.mark.parametrize("prefix", ["", "model.", "module.", "app.model.", "_orig_mod.", "state_dict.model."])
def test_where_no_keys_are_kept_the_names_alone_decide(model: str, prefix: str) -> None:
    state = tensors(*(prefix + name for name in MODELS[model]))
    assert own(choose(state, with_paths=False)) == set(MODELS[model])


@pytest.mark.parametrize("prefix", ["model.", "net.", "actor.", "module.", "llm."])
def test_a_tied_model_without_its_head_keeps_transformers_own_prefix(prefix: str) -> None:
    state = tensors(*(prefix + name for name in TIED))
    assert own(choose(state, with_paths=False)) == set(TIED)


@pytest.mark.parametrize(
    ("prefix", "kept"), [("model.", "model."), ("net.", ""), ("module.", ""), ("actor.", "")]
)
def test_a_bare_base_model_under_a_prefix(prefix: str, kept: str) -> None:
    """`model.layers` is what a CausalLM calls it; a trainer's attribute is no name of transformers'."""
    state = tensors(*(prefix + name for name in BASE))
    assert own(choose(state, with_paths=False)) == {kept + name for name in BASE}


def test_a_prefix_that_is_not_known_is_kept_and_said() -> None:
    chosen = choose(tensors(*(f"esm.{name}" for name in BASE)))
    assert own(chosen) == {f"esm.{name}" for name in BASE}
    assert any("'esm'" in note for note in chosen.notes)


NESTED_OPTIMIZER = {
    "state": {name: {"exp_avg": (4, 4), "exp_avg_sq": (4, 4), "step": ()} for name in CAUSAL},
    "param_groups": {0: {"lr": None}},
}
FLAT_OPTIMIZER = {
    **{f"state.{name}.{slot}": (4, 4) for name in CAUSAL for slot in ("exp_avg", "exp_avg_sq", "odd")},
    **{f"param_groups.{name}.lr": None for name in CAUSAL},
}


@pytest.mark.parametrize("optimizer", [NESTED_OPTIMIZER, FLAT_OPTIMIZER], ids=["nested", "flat"])
@pytest.mark.parametrize("key", ["optimizer", "optim", "optimizer_state_dict", "whatever", None])
@pytest.mark.parametrize("with_paths", [True, False])
def test_optimizers_go_whatever_their_key_is(
    optimizer: dict[str, Any], key: str | None, with_paths: bool
) -> None:
    if key == "whatever" and not with_paths:
        pytest.skip("a flat name says nothing then")
    state = {**tensors(*CAUSAL), **({key: optimizer} if key else optimizer)}
    chosen = choose(state, with_paths)
    assert own(chosen) == set(CAUSAL)
    assert set(chosen.why_not.values()) == {"optimizer"}


def test_what_trainers_save_beside_a_model_has_a_reason() -> None:
    state = {
        **tensors(*CAUSAL),
        "lr_scheduler": {"base_lrs": (3,)},
        "dataloader": {"dp_rank_0": None},
        "rng_state": {"cpu": (16,)},
        "grad_scaler": {"scale": ()},
        "train_state": {"step": (), "ntokens_seen": ()},
        "train_progress": {"num_tokens": ()},
    }
    chosen = choose(state)
    assert own(chosen) == set(CAUSAL)
    assert chosen.why_not == {
        "lr_scheduler.base_lrs": "scheduler",
        "dataloader.dp_rank_0": "data loader",
        "rng_state.cpu": "random state",
        "grad_scaler.scale": "loss scaler",
        "train_state.step": "trainer state",
        "train_state.ntokens_seen": "trainer state",
        "train_progress.num_tokens": "trainer state",
    }


def test_names_of_a_module_that_sound_like_a_trainers_stay() -> None:
    names = (
        "embed_tokens.weight",
        "layers.0.rng.weight",
        "layers.0.step_embed.weight",
        "steps",
        "metrics_head.weight",
    )
    assert own(choose(tensors(*names))) == set(names)
    assert own(choose({"model": tensors(*names)})) == set(names)


@pytest.mark.parametrize(
    ("first", "other"),
    [
        ("actor", "critic"),
        ("policy", "ref_policy"),
        ("model", "ema"),
        ("model", "model_ema"),
        ("student", "teacher"),
        ("generator", "reward_model"),
    ],
)
@pytest.mark.parametrize("names", [CAUSAL, BASE], ids=["causal", "base"])
def test_of_two_models_the_trained_one_is_taken_and_the_other_named(
    first: str, other: str, names: tuple[str, ...]
) -> None:
    chosen = choose({first: tensors(*names), other: tensors(*names), "step": ()})
    assert set(chosen.names) == {f"{first}.{name}" for name in names}
    assert own(chosen) == set(names)
    assert {chosen.why_not[f"{other}.{name}"] for name in names} == {f"another model: {other}"}
    assert any(other in note for note in chosen.notes)


def test_an_average_beside_names_at_the_top() -> None:
    chosen = choose(tensors(*CAUSAL, *(f"ema.{name}" for name in CAUSAL)), with_paths=False)
    assert own(chosen) == set(CAUSAL)


def test_a_lone_critic_or_average_is_the_model() -> None:
    assert own(choose({"critic": tensors(*CAUSAL)})) == set(CAUSAL)
    assert own(choose({"ema": tensors(*CAUSAL), "optimizer": NESTED_OPTIMIZER})) == set(CAUSAL)


def test_an_average_kept_as_a_list_is_left_out() -> None:
    state = {"model": tensors(*CAUSAL), "ema": {"shadow_params": {0: (4, 4), 1: (4, 4)}, "decay": ()}}
    chosen = choose(state)
    assert own(chosen) == set(CAUSAL)
    assert chosen.why_not["ema.shadow_params.1"] == "another model: ema"


def test_two_models_of_equal_rank_are_an_error_that_lists_them() -> None:
    with pytest.raises(CkptconvError, match="several models") as error:
        choose({"left": tensors(*CAUSAL), "right": tensors(*CAUSAL)})
    assert "left (4 tensors), right (4 tensors)" in str(error.value.found)


def test_parameters_beside_a_model_are_never_dropped_in_silence() -> None:
    with pytest.raises(CkptconvError, match="do not belong to the model") as error:
        choose({"model": tensors(*BASE), "extra_head": tensors("dense.weight")})
    assert "extra_head.dense.weight" in str(error.value.found)


def test_an_optimizer_alone_is_no_model() -> None:
    with pytest.raises(CkptconvError, match="no model tensors") as error:
        choose({"optimizer": NESTED_OPTIMIZER})
    assert "optimizer" in str(error.value.found)
