"""Options and SourceSpec refuse nonsense where they are made, in Python as on the command line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import cli

import ckptconv
from ckptconv import CkptconvError, Kind, Options, SourceSpec

Made = Callable[[str], Path]


@pytest.mark.parametrize(
    ("field", "value", "wanted"),
    [
        ("dtype", "fp8", "bfloat16"),
        ("dtype", None, "auto"),
        ("dtype", ["keep"], "keep"),
        ("lora", "nonsense", "merge, adapter, both"),
        ("layout", "modul", "hub, module"),
        ("mtp", "dorp", "keep, drop"),
        ("lora_alpha", 0, "positive"),
        ("lora_alpha", float("nan"), "positive"),
        ("lora_alpha", True, "positive"),
        ("max_shard_size", "5 potatoes", "5GB"),
        ("max_shard_size", 0, "5GB"),
    ],
)
def test_a_word_that_is_not_accepted_is_refused(field: str, value: Any, wanted: str) -> None:
    with pytest.raises(CkptconvError) as error:
        Options(**{field: value})
    assert wanted in str(error.value.wanted)


@pytest.mark.parametrize(("short", "long"), [("bf16", "bfloat16"), ("fp16", "float16"), ("fp32", "float32")])
def test_short_dtype_words_are_accepted_everywhere(short: Any, long: str, made: Made, tmp_path: Path) -> None:
    assert Options(dtype=short) == Options(dtype=long)  # type: ignore[arg-type]
    merged = ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", dtype=short, dry_run=True)
    assert {after for _, after, _, _ in merged.plan.casts} == {long}
    ran = cli("merge", made("fsdp2_w4"), tmp_path / "out", "--dtype", short, "--dry-run", "--json")
    assert ran.code == 0
    assert {tensor["dtype"] for tensor in json.loads(ran.out)["tensors"].values()} == {long}


@pytest.mark.parametrize("also", [{"layout": "module"}, {"mtp": "drop"}])
def test_choices_about_the_model_contradict_an_adapter_alone(also: dict[str, Any]) -> None:
    with pytest.raises(CkptconvError, match="--lora adapter writes only the adapter"):
        Options(lora="adapter", **also)


def test_options_together_with_keywords_are_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="options are given together with dtype") as error:
        ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", options=Options(), dtype="keep")
    assert error.value.kind is Kind.USAGE
    assert not (tmp_path / "out").exists()


def test_an_unknown_keyword_is_refused(made: Made, tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="dtpye"):
        ckptconv.merge(made("fsdp2_w4"), tmp_path / "out", dtpye="keep")  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("keywords", "what"),
    [
        ({"step": "newest"}, "step"),
        ({"step": 1.5}, "step"),
        ({"also": "folder"}, "also"),
        ({"path": 3}, "path"),
    ],
)
def test_a_source_that_makes_no_sense_is_refused(keywords: dict[str, Any], what: str) -> None:
    with pytest.raises(CkptconvError, match=f"{what} does not accept"):
        SourceSpec(**{"path": "run", **keywords})


def test_a_source_spec_together_with_keywords_is_refused(made: Made) -> None:
    spec = SourceSpec(made("fsdp2_w4"), step=7)
    with pytest.raises(CkptconvError, match="a SourceSpec is given together with step"):
        ckptconv.inspect(spec, step=7)


def test_one_record_says_where_a_checkpoint_is(made: Made, tmp_path: Path) -> None:
    spec = SourceSpec(made("fsdp2_w4"), backend="fsdp", step="latest")
    assert ckptconv.inspect(spec).step == 7
    assert ckptconv.open(spec).checkpoint.step == 7
    assert ckptconv.merge(spec, tmp_path / "out", dtype="keep").plan.checkpoint.step == 7
    assert ckptconv.verify(tmp_path / "out", against=spec).ok
    assert ckptconv.verify(spec, against=tmp_path / "out").ok


def test_the_latest_step_can_be_asked_for_on_the_command_line(made: Made) -> None:
    ran = cli("inspect", made("fsdp2_w4"), "--step", "latest", "--json")
    assert (ran.code, json.loads(ran.out)["step"]) == (0, 7)
    assert cli("inspect", made("fsdp2_w4"), "--step", "newest").code == 2


def test_the_latest_step_of_a_folder_without_steps_is_refused(made: Made) -> None:
    with pytest.raises(CkptconvError, match="no steps in this folder"):
        ckptconv.inspect(made("fsdp2_w4") / "global_step_7" / "actor", step="latest")
