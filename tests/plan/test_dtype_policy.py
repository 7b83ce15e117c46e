"""The dtype policy: a table of what is stored, what the config says, what is asked, and what is written."""

from __future__ import annotations

from typing import Any

import pytest
from support.plans import view

from ckptconv.errors import CkptconvError
from ckptconv.plan.dtype_policy import KEPT, most, target, typed
from ckptconv.plan.records import Fill


@pytest.mark.parametrize(
    ("stored", "config", "policy", "wanted"),
    [
        ({"float32"}, {"dtype": "bfloat16"}, "auto", "bfloat16"),
        ({"float32"}, {"torch_dtype": "float16"}, "auto", "float16"),
        ({"float32"}, {"dtype": "float32"}, "auto", "bfloat16"),  # how verl loads masters
        ({"float32"}, {}, "auto", "bfloat16"),
        ({"float32", "bfloat16"}, {"dtype": "float16"}, "auto", "float16"),
        ({"bfloat16"}, {"dtype": "float16"}, "auto", ""),
        ({"float32"}, {"dtype": "bfloat16"}, "keep", ""),
        ({"bfloat16"}, {}, "float32", "float32"),
    ],
)
def test_what_float_masters_become(
    stored: set[str], config: dict[str, Any], policy: str, wanted: str
) -> None:
    dtype, sentence = target(stored, config, policy)
    assert dtype == wanted
    assert (sentence == KEPT) == (not wanted)


def types(stored: dict[str, str], config: dict[str, Any], policy: str, naming: str = "transformers") -> Any:
    filled = {name: Fill(view((2,), dtype), (2,), (name,)) for name, dtype in stored.items()}
    return typed(filled, config, policy, naming)


def test_auto_casts_masters_and_nothing_else() -> None:
    stored = {"a": "float32", "b": "float16", "c": "int64", "gate.e_score_correction_bias": "float32"}
    assert types(stored, {"dtype": "bfloat16"}, "auto").dtypes == {**stored, "a": "bfloat16"}


def test_a_forced_dtype_casts_all_floats() -> None:
    stored = {"a": "float32", "b": "float16", "c": "int64", "gate.e_score_correction_bias": "float32"}
    found = types(stored, {}, "bfloat16").dtypes
    assert found == {**dict.fromkeys(stored, "bfloat16"), "c": "int64"}


def test_a_model_folder_keeps_its_dtypes_unless_asked() -> None:
    assert types({"a": "float32"}, {"dtype": "bfloat16"}, "auto", "hub").dtypes == {"a": "float32"}
    assert types({"a": "float32"}, {}, "float16", "hub").dtypes == {"a": "float16"}


def test_the_sentence_says_kept_where_nothing_changes() -> None:
    assert types({"a": "bfloat16"}, {}, "bfloat16").sentence == KEPT
    assert "bfloat16" in types({"a": "float32"}, {}, "bfloat16").sentence


@pytest.mark.parametrize(
    ("stored", "config"),
    [({"float8_e4m3fn", "float32"}, {}), ({"int8", "float32"}, {"quantization_config": {"bits": 8}})],
)
def test_quantized_weights_are_not_cast(stored: set[str], config: dict[str, Any]) -> None:
    with pytest.raises(CkptconvError, match="quantized weights cannot be cast"):
        target(stored, config, "bfloat16")
    assert target(stored, config, "keep")[0] == ""


def test_the_dtype_of_the_config_is_that_of_most_bytes() -> None:
    assert most([("float32", 10), ("bfloat16", 11), ("int64", 99)]) == "bfloat16"
    assert most([("int64", 99)]) == "float32"
