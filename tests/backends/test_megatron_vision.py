"""Models that see in Megatron's names: every bridge's tower, its prefixes, ties and heads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from safetensors.numpy import load_file
from support.helpers import FIXTURES, cli, edit_json, tensors, unpacked

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.backends.megatron.names import canonical
from ckptconv.models import megatron, translate
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import View, narrow, stored

CASES = sorted(path.name.removesuffix(".tar.xz") for path in (FIXTURES / "megatron").glob("*_vl_*.tar.xz"))


def home(case: str) -> Path:
    return unpacked(f"megatron/{case}")


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def views(case: str) -> dict[str, View]:
    return {name: tensor.view for name, tensor in open_checkpoint(home(case) / "run").tensors.items()}


def merged(case: str, out: Path, **changes: Any) -> Any:
    """A merge with changes in the config.json that it is given."""
    hf = Path(shutil.copytree(home(case) / "hf", out.parent / "hf"))
    edit_json(hf / "config.json", **changes)
    return merge(home(case) / "run", out, config=hf)


def test_every_way_to_hold_a_tower_is_here() -> None:
    assert len(CASES) == 15


@pytest.mark.parametrize("case", CASES)
def test_the_way_back_makes_the_stored_tensors(case: str) -> None:
    held = views(case)
    family = megatron.family_of(config(case)).variant_for(held)
    made = translate.to_trained(family, load_file(home(case) / "hf" / "model.safetensors"), config(case))
    assert {name for name in held.keys() ^ made.keys() if "norm" not in name} == set()
    for name in held.keys() & made.keys():
        rows = read_numpy(held[name])[: made[name].shape[0]]  # the vocabulary is padded
        assert rows.tobytes() == np.ascontiguousarray(made[name]).tobytes(), name


@pytest.mark.parametrize(
    ("family", "cases"),
    {
        "Qwen2.5-VL": ("mb", "mcb", "tp1", "tp2", "mlm_legacy"),
        "Qwen3-VL": ("mb", "mcb", "mlm_legacy"),
        "Qwen3-VL-MoE": ("mb", "mcb"),
    }.items(),
)
def test_every_tower_of_a_family_becomes_the_same_model(
    family: str, cases: tuple[str, ...], tmp_path: Path
) -> None:
    start = family.lower().replace("-", "_").replace(".", "_")
    found = []
    for case in cases:
        result = merge(
            home(f"{start}_{case}") / "run", tmp_path / case, config=home(f"{start}_{case}") / "hf"
        )
        assert result.plan.rules[0] == f"{family} in Megatron's names"
        found.append(tensors(tmp_path / case))
    assert all(one == found[0] for one in found)


def test_a_merger_that_was_split_over_ranks_is_spoken_of(tmp_path: Path) -> None:
    """mbridge up to 0.15.1 permuted its rows, and the files do not say which release it was."""
    one, two = (
        merge(home(c) / "run", tmp_path / c, config=home(c) / "hf")
        for c in ("qwen2_5_vl_tp1", "qwen2_5_vl_tp2")
    )
    assert not any("mbridge" in note for note in one.plan.notes)
    assert any("mbridge up to 0.15.1" in note for note in two.plan.notes)


def test_mbridges_tower_of_qwen3_vl_has_the_hubs_names() -> None:
    """Read from files of a release that is not on PyPI, which no fixture holds: here from its names alone."""
    mark = "vision_model.merger.patch_norm.weight"
    family = megatron.family_of(config("qwen3_vl_mb")).variant_for([mark])
    hub = load_file(home("qwen3_vl_mb") / "hf" / "model.safetensors")
    made = translate.to_trained(family, hub, config("qwen3_vl_mb"))
    layer, stack = "vision_model.decoder.layers.1.", "vision_model.decoder.deepstack_merger_list.0."
    assert {
        mark,
        f"{layer}self_attention.linear_qkv.layer_norm_bias",
        f"{layer}mlp.linear_fc1.layer_norm_weight",
        f"{layer}mlp.linear_fc1.bias",
        f"{stack}patch_norm.weight",
        f"{stack}linear_fc2.bias",
    } <= made.keys()
    back = translate.to_hub(family, made, config("qwen3_vl_mb"), "Megatron").tensors
    assert {name: t.value.tobytes() for name, t in back.items()} == {n: a.tobytes() for n, a in hub.items()}


def test_stacked_mergers_are_numbered() -> None:
    """mbridge stacks them as layers are."""
    name = "vision_model.decoder.deepstack_merger_list.{}linear_fc1.bias"
    found = canonical({name.format(""): StoredTensor(stored("f", 0, (3, 8), "float32"))})
    assert {n: t.view.chunks[0].start for n, t in found.items()} == {
        name.format(f"{i}."): 32 * i for i in range(3)
    }


def test_rank_files_of_that_tower_are_refused(tmp_path: Path) -> None:
    """Their linear_fc1 has no gate, and Qwen2.5-VL's has one under the same name."""
    torch = pytest.importorskip("torch")
    folder = tmp_path / "iter_0000001" / "mp_rank_00"
    folder.mkdir(parents=True)
    model = {"vision_model.merger.patch_norm.weight": torch.zeros(12)}
    torch.save({"model": model}, folder / "model_optim_rng.pt")
    with pytest.raises(CkptconvError, match="MLP without a gate"):
        open_checkpoint(tmp_path)


def test_a_part_of_the_tower_that_the_hub_does_not_have_is_refused() -> None:
    held = views("qwen3_vl_mb")
    held["vision_model.blocks.0.attn.qkv.lora_A.default.weight"] = held[
        "vision_model.blocks.0.attn.qkv.weight"
    ]
    with pytest.raises(CkptconvError, match=r"has no entry for the stored tensor .*lora_A"):
        megatron.to_hub(held, config("qwen3_vl_mb"))


def test_two_towers_at_once_are_refused() -> None:
    held = views("qwen2_5_vl_mb")
    held["visual.visual.merger.ln_q.weight"] = held["visual.merger.ln_q.weight"]
    with pytest.raises(CkptconvError, match=r"has no entry for the stored tensor visual\.visual"):
        megatron.to_hub(held, config("qwen2_5_vl_mb"))


@pytest.mark.parametrize(("key", "wrong"), [("num_heads", 5), ("hidden_size", 14)])
def test_another_towers_heads_are_refused(key: str, wrong: int) -> None:
    changed = config("qwen2_5_vl_tp2")
    changed["vision_config"][key] = wrong
    with pytest.raises(CkptconvError, match=r"does not have the layout that config\.json implies"):
        megatron.to_hub(views("qwen2_5_vl_tp2"), changed)


@pytest.mark.parametrize("key", ["vocab_size", "num_hidden_layers", "num_key_value_heads"])
@pytest.mark.parametrize("case", ["qwen2_5_vl_mb", "qwen3_vl_mcb"])
def test_the_language_models_own_config_is_what_must_fit(case: str, key: str, tmp_path: Path) -> None:
    text = config(case)["text_config"]
    says = f"give two values of {key}"
    if key == "vocab_size":
        says = r"word_embeddings\.weight has fewer rows than the vocabulary"
    with pytest.raises(CkptconvError, match=says):
        merged(case, tmp_path / "out", text_config=text | {key: text[key] * 2})
    assert not (tmp_path / "out").exists()


def test_a_config_without_text_config_serves_as_well(tmp_path: Path) -> None:
    """As Qwen2.5-VL was published: the language model's values at the top."""
    text = config("qwen2_5_vl_tp2")["text_config"]
    text = {key: value for key, value in text.items() if key not in ("architectures", "model_type")}
    merged("qwen2_5_vl_tp2", tmp_path / "out", text_config=None, **text)
    assert tensors(tmp_path / "out") == tensors(home("qwen2_5_vl_tp2") / "hf")


@pytest.mark.parametrize("case", ["qwen2_5_vl_mb", "qwen3_vl_mb"])
def test_a_head_that_differs_from_what_the_config_ties_is_kept(case: str, tmp_path: Path) -> None:
    result = merged(case, tmp_path / "out", tie_word_embeddings=True)
    assert any("lm_head.weight differs" in note for note in result.plan.notes)
    assert not json.loads((tmp_path / "out" / "config.json").read_text())["tie_word_embeddings"]
    assert tensors(tmp_path / "out") == tensors(home(case) / "hf")


@pytest.mark.parametrize("case", ["qwen2_5_vl_mb", "qwen3_vl_mb"])
def test_a_value_head_has_the_hubs_name(case: str) -> None:
    held = views(case)
    head = "language_model.output_layer.weight"
    held[head] = narrow(held[head], 0, 0, 1)
    made = megatron.to_hub(held, config(case)).tensors
    assert made["score.weight"].sources == (head,)
    assert "lm_head.weight" not in made


@pytest.mark.parametrize(
    "case", ["qwen2_vl_mcb", "qwen2_5_vl_tp2", "qwen3_vl_mb", "qwen3_vl_moe_mcb", "gemma3_vl_mb"]
)
def test_transformers_finds_every_tensor(case: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    result = merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf")
    kind = getattr(transformers, result.plan.config["architectures"][0])
    _, loading = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(loading.values()), loading
    assert cli("verify", tmp_path / "out").code == 0


def test_the_experts_of_qwen3_vl_are_as_published_and_loaded_as_such(tmp_path: Path) -> None:
    """(in, out); transformers has them the other way round, and looks at the shape."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    case = "qwen3_vl_moe_mb"
    merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf")
    model = transformers.Qwen3VLMoeForConditionalGeneration.from_pretrained(
        tmp_path / "out", dtype=torch.bfloat16
    )
    loaded, written = model.state_dict(), load_file(tmp_path / "out" / "model.safetensors")
    for kind, shape in (("gate_up_proj", (6, 22, 20)), ("down_proj", (6, 10, 22))):
        name = f"model.language_model.layers.1.mlp.experts.{kind}"
        assert written[name].shape == shape
        turned = loaded[name].transpose(1, 2).contiguous().view(torch.int16).numpy()
        assert turned.tobytes() == written[name].tobytes()


@pytest.mark.parametrize("case", CASES)
def test_inspect_finds_all_parts(case: str) -> None:
    ran = cli("inspect", home(case) / "run")
    assert ran.code == 0, ran
    assert "embedding" in ran.out
    assert "layers 0–1" in ran.out
    assert "every stored element is there" in ran.flat or "no element is missing" in ran.flat
