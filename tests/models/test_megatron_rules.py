"""Every rule of every family, from the config alone: there and back is the identity, and views, numpy and torch agree."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ckptconv.models.family import Family, Rule
from ckptconv.models.megatron.composed import ByConfig
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.models.pattern import Pattern
from ckptconv.models.rules import Grouped, Turned, Ungrouped
from ckptconv.models.translate import to_hub, to_trained
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.view import View, stored

Arrays = dict[str, np.ndarray[Any, Any]]
SIZES = (2, 3, 4, 5, 6, 7)  # of what a config counts: no two of them are equal


@st.composite
def configs(draw: st.DrawFn) -> dict[str, Any]:
    """A config that every family can read, whose sizes all differ."""
    groups, queries, head_dim, layers, key, value = draw(st.permutations(SIZES))
    return {
        "num_attention_heads": groups * queries,
        "num_key_value_heads": groups,
        "head_dim": head_dim,
        "hidden_size": draw(st.sampled_from((22, 26, 34))),
        "vocab_size": draw(st.sampled_from((19, 31, 37))),
        "num_hidden_layers": layers,
        "linear_num_key_heads": queries,
        "linear_num_value_heads": queries * groups,
        "linear_key_head_dim": key,
        "linear_value_head_dim": value,
        "vision_config": {"num_heads": groups, "hidden_size": groups * head_dim},
        "mamba_num_heads": groups,
        "mamba_head_dim": head_dim,
        "n_groups": key,
        "ssm_state_size": value,
        "num_nextn_predict_layers": 2,
        "mtp_hybrid_override_pattern": "*E",
        "moe_num_experts": 3,
        "num_attention_groups": groups,
        "layer_types": ["sliding_attention", "full_attention"] * 4,
        "v_head_dim": value,
        "hybrid_layer_pattern": [0, 1, 0, 1],
        "swa_num_key_value_heads": queries,
        "swa_v_head_dim": key,
        "index_n_heads": key,
        "index_head_dim": 2 * value,
        "block_configs": [{"attention": {"n_heads_in_group": n}} for n in (queries, groups)] * 2,
    }


def rules_of(model_type: str, config: dict[str, Any]) -> Iterator[Rule]:
    """Every rule of a model type; a composition has Qwen3 inside where its config decides."""
    table = FAMILIES[model_type].table
    if isinstance(table, ByConfig):
        table = table.family(config)
    if not isinstance(table, Family):
        table = table.around(table.language or table.languages["qwen3"])
    yield from table.every_rule()


def rows_of(rule: Rule, config: dict[str, Any], layer: int, pick: random.Random) -> list[int]:
    """Rows of each trained tensor of a rule; even where no layout change asks for more."""
    first = next(iter(rule.layouts_for(config, {"layer": str(layer)})), None)
    if isinstance(first, Grouped | Ungrouped):
        return [first.groups * sum(first.parts)]
    if isinstance(first, Turned) and isinstance(first.layout, Grouped):
        return [first.layout.groups * part for part in first.layout.parts]
    rows = rule.rows(config) if rule.rows else 2 * pick.randint(1, 9)
    return [rows] * len(rule.trained.names)


def trained(rule: Rule, config: dict[str, Any], pick: random.Random) -> Arrays:
    """The stored tensors of one application of a rule, with random values."""
    numbers = {hole: pick.randint(0, 3) for hole in Pattern.NUMBERS}
    words = {hole: pick.choice(("weight", "bias")) for hole in rule.trained.holes if hole not in numbers}
    experts = range(pick.randint(2, 5)) if rule.gathered else (numbers["expert"],)
    found: Arrays = {}
    columns = 2 * pick.randint(1, 9)
    for pattern, rows in zip(rule.trained.names, rows_of(rule, config, numbers["layer"], pick), strict=True):
        for expert in experts:
            name = pattern.fill({**numbers, **words, "expert": expert})
            shape = (rows,) if name.endswith("bias") else (rows, columns)
            bits = np.frombuffer(pick.randbytes(4 * int(np.prod(shape))), np.int32)
            found[name] = bits.reshape(shape).copy()
    return found


def on_disk(arrays: Arrays, file: Path) -> dict[str, View]:
    """The same tensors as views over one file, with a gap before each."""
    views, data = {}, b""
    for name, array in arrays.items():
        data += b"gap"
        views[name] = stored(str(file), len(data), array.shape, "int32")
        data += array.tobytes()
    file.write_bytes(data)
    return views


@pytest.mark.parametrize("model_type", sorted(FAMILIES))
@settings(deadline=None, derandomize=True, database=None, max_examples=4)
@given(config=configs(), seed=st.integers(0, 1 << 30))
def test_every_rule_there_and_back(
    model_type: str, config: dict[str, Any], seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    torch = pytest.importorskip("torch")
    pick, file = random.Random(seed), tmp_path_factory.getbasetemp() / "rule.bin"
    for rule in rules_of(model_type, config):
        if rule.reason:
            continue
        family = Family(rule.text, (rule,))
        arrays = trained(rule, config, pick)
        made = to_hub(family, arrays, config, "numpy").tensors
        values = {name: t.value.reshape(t.shape) for name, t in made.items()}
        assert sum(value.size for value in values.values()) == sum(array.size for array in arrays.values())
        tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
        for name, mine in to_hub(family, tensors, config, "torch").tensors.items():
            assert np.array_equal(mine.value.reshape(mine.shape).numpy(), values[name]), rule.text
        for name, view in to_hub(family, on_disk(arrays, file), config, "views").tensors.items():
            assert view.shape == values[name].shape, rule.text
            assert np.array_equal(read_numpy(view.value).reshape(view.shape), values[name]), rule.text
        if rule.added:
            continue  # adding rounds, so there is no way back
        back = to_trained(family, values, config)
        assert sorted(back) == sorted(arrays), rule.text
        for name, array in back.items():
            assert np.array_equal(array, arrays[name]), rule.text
        again = to_hub(family, back, config, "again").tensors
        assert {name: t.value.reshape(t.shape).tobytes() for name, t in again.items()} == {
            name: value.tobytes() for name, value in values.items()
        }, rule.text
