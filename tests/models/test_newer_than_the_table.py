"""A model type that the shipped table does not have: the installed transformers' mapping is used, or a note says so."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.more_models import built

from ckptconv.errors import CkptconvError
from ckptconv.models import facts, installed, table
from ckptconv.models.naming import to_hub


@pytest.fixture
def without_qwen3_moe(monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped facts and table as they were before Qwen3-MoE."""
    old, rules = facts._facts(), table.load()
    known = {
        **old,
        "model_types": [kind for kind in old["model_types"] if kind != "qwen3_moe"],
        "classes": {name: found for name, found in old["classes"].items() if not name.startswith("Qwen3Moe")},
    }
    fewer = rules | {
        "rules": {
            name: found
            for name, found in rules["rules"].items()
            if name != "qwen3_moe" and found != "qwen3_moe"
        },
        "classes": {
            name: found for name, found in rules["classes"].items() if not name.startswith("Qwen3Moe")
        },
    }
    monkeypatch.setattr(facts, "_facts", lambda: known)
    monkeypatch.setattr(table, "load", lambda: fewer)


def _named(tensors: dict[str, np.ndarray], config: dict[str, Any]) -> Any:
    return to_hub("transformers", tensors, config)  # type: ignore[arg-type]


def test_the_installed_transformers_knows_it(without_qwen3_moe: None, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _, state, config = built("qwen3_moe", tmp_path)
    found = _named(state, config)
    wanted = load_file(tmp_path / "model.safetensors")
    assert {n: named.shape for n, named in found.tensors.items()} == {n: v.shape for n, v in wanted.items()}
    assert any("mlp.experts.0.gate_proj" in name for name in found.tensors)
    (note,) = found.notes
    assert "qwen3_moe is newer than the table of names" in note
    assert f"the installed transformers {installed.installed_version()}" in note


def test_nothing_knows_it_and_the_names_stay(tmp_path: Path) -> None:
    config = {"model_type": "not_yet_made", "architectures": ["NotYetMadeForCausalLM"]}
    found = _named({"model.x.weight": np.zeros(3, np.float32)}, config)
    assert list(found.tensors) == ["model.x.weight"]
    (note,) = found.notes
    assert "not_yet_made is newer than the table" in note
    assert "does not have it either: names are written as they are stored" in note


def test_a_class_that_cannot_be_built_is_refused_by_name(without_qwen3_moe: None) -> None:
    config = {
        "model_type": "qwen3_moe",
        "architectures": ["Qwen3MoeForCausalLM"],
        "num_attention_heads": "many",
    }
    with pytest.raises(
        CkptconvError, match=r"qwen3_moe, and transformers .* cannot build Qwen3MoeForCausalLM"
    ):
        _named({"model.x.weight": np.zeros(3, np.float32)}, config)


def test_a_mapping_that_cannot_be_reversed_is_refused_by_name() -> None:
    dory = {"model_type": "dory", "architectures": ["DoryForCausalLM"]}
    with pytest.raises(
        CkptconvError, match="the conversion of dory is of an unknown kind: LayerPairCollapse"
    ):
        _named({"model.x.weight": np.zeros(3, np.float32)}, dory)


def test_code_of_the_repository_itself_is_not_called_unknown() -> None:
    config = {"model_type": "own", "architectures": ["Own"], "auto_map": {"AutoModel": "modeling_own.Own"}}
    assert facts.unknown_note(config) is None


def test_a_known_model_type_imports_no_transformers() -> None:
    code = (
        "import sys; from ckptconv.models import facts, table; config = {'model_type': 'qwen3_moe', 'architectures': "
        "['Qwen3MoeForCausalLM']}; assert table.rules_of(config, None); assert facts.unknown_note(config) is None; "
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
