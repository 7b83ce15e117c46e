"""A critic of every family: Megatron's output_layer of one row is score.weight on the Hub, and the config says so."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from support.helpers import FIXTURES, cli, unpacked

from ckptconv.backends import open_checkpoint
from ckptconv.commands.planning import plan_for
from ckptconv.models import facts
from ckptconv.plan import Options
from ckptconv.tensors.checkpoint import StoredTensor
from ckptconv.tensors.view import narrow


def config(case: str) -> dict[str, Any]:
    return json.loads((unpacked(f"megatron/{case}") / "hf" / "config.json").read_text())


def case_of_each_family() -> dict[str, str]:
    """model_type -> a fixture of it that holds the whole model."""
    cases = sorted(path.name.removesuffix(".tar.xz") for path in (FIXTURES / "megatron").glob("*.tar.xz"))
    whole = [case for case in cases if not case.startswith(("lora_", "critic_"))]
    return {config(case)["model_type"]: case for case in whole}


CASES = case_of_each_family()


@pytest.mark.parametrize("model_type", sorted(CASES))
def test_a_critic_of_every_family(model_type: str) -> None:
    home = unpacked(f"megatron/{CASES[model_type]}")
    actor = open_checkpoint(home / "run")
    inside = next(name for name in actor.tensors if name.endswith("embedding.word_embeddings.weight"))
    head = inside.replace("embedding.word_embeddings", "output_layer")
    row = StoredTensor(narrow(actor.tensors[inside].view, 0, 3, 1))
    plan = plan_for(replace(actor, tensors={**actor.tensors, head: row}), Options(), home / "hf")
    score = next(output for name, output in plan.outputs.items() if name.endswith("score.weight"))
    hidden = actor.tensors[inside].view.shape[1]
    assert (score.shape, score.origins) == ((1, hidden), (head,))
    assert not any(name.endswith("lm_head.weight") for name in plan.outputs)
    assert plan.config is not None
    assert plan.config["id2label"] == {"0": "LABEL_0"}
    wanted = facts.architecture_for(plan.config, "token") or facts.architecture_for(plan.config, "sequence")
    named = facts.named_architectures(config(CASES[model_type]))
    assert plan.config["architectures"] == (
        [wanted] if wanted else named or [facts.default_architecture(plan.config)]
    )
    assert any("value head (score.weight)" in note for note in plan.notes)


@pytest.mark.parametrize("case", ["critic_tp2", "critic_verl_legacy"])
def test_verls_flag_takes_a_real_critic(case: str, tmp_path: Any) -> None:
    home = unpacked(f"megatron/{case}")
    ran = cli("merge", "--is-value-model", "--config", home / "hf", home / "run", tmp_path / "out")
    assert ran.code == 0
    written = json.loads((tmp_path / "out" / "config.json").read_text())
    assert written["architectures"] == ["Qwen2ForTokenClassification"]
    assert len(written["id2label"]) == 1
