"""Numbers in configs of which names or lists are made: another kind of value, or a trillion, is an error at once."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.helpers import assert_one_error, cli, unpacked

from ckptconv.errors import CkptconvError
from ckptconv.models.family import number_of_experts
from ckptconv.models.nanotron.config import hub_config


@pytest.mark.parametrize("value", [[0], "8", 0, -1, True, 8.0, None, 10**12])
def test_a_number_of_experts_that_is_none(value: Any) -> None:
    with pytest.raises(CkptconvError, match=r"num_experts in config\.json is not a number of experts"):
        number_of_experts({"num_experts": value}, "num_experts")


@pytest.mark.parametrize("layers", [0, -3, 2.5, 10**12])
def test_nanotrons_number_of_layers_makes_no_list_without_end(layers: Any) -> None:
    path = next((unpacked("nanotron_smollm3_tp1") / "run").rglob("model_config.json"))
    values = json.loads(path.read_text())
    assert hub_config(values) is not None
    assert hub_config(values | {"num_hidden_layers": layers}) is None


@pytest.mark.parametrize("value", [[4, 4], "four", {"a": 1}, 10**15])
@pytest.mark.parametrize("key", ["num_experts", "hidden_size", "intermediate_size"])
def test_a_merge_by_a_config_of_odd_values_ends_in_one_error(key: str, value: Any, tmp_path: Path) -> None:
    home = unpacked("olmo_core_flex_olmo")
    config = json.loads((home / "hf" / "config.json").read_text()) | {key: value}
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
    ran = cli("merge", home / "run", tmp_path / "out", "--config", tmp_path / "hf")
    assert_one_error(ran, "config.json|layout|not the model|experts|shape|hidden|states")
    assert "unexpected error" not in ran.err
    assert not (tmp_path / "out").exists()
