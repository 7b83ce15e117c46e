"""The command line: verl's lines, word by word, and words that are wrong."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import (
    ROLE,
    assert_equal,
    cast,
    cli,
    own_copy,
    process,
    state,
    tensors,
)

Made = Callable[[str], Path]


@pytest.mark.parametrize("line", [f"--backend fsdp --local{dash}dir D --target{dash}dir O" for dash in "_-"])
def test_verls_merge_line_works_in_both_spellings(made: Made, tmp_path: Path, line: str) -> None:
    paths = {"D": str(made("fsdp2_w4") / ROLE), "O": str(tmp_path / "out")}
    ran = cli("merge", *(paths.get(word, word) for word in line.split()))
    assert ran.code == 0
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


@pytest.mark.parametrize(
    "flag",
    ["--tie-word-embedding", "--tie_word_embedding", "--trust-remote-code", "--use_cpu_initialization"],
)
def test_verls_other_flags_are_accepted_and_change_nothing(made: Made, tmp_path: Path, flag: str) -> None:
    ran = cli("merge", flag, "--local_dir", made("fsdp2_w4"), "--target_dir", tmp_path / "out")
    assert ran.code == 0
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


def test_verls_line_without_a_target_writes_to_tmp_in_the_working_folder(made: Made, tmp_path: Path) -> None:
    """verl's default."""
    ran = process("merge", "--backend", "fsdp", "--local_dir", made("fsdp2_w4"), cwd=tmp_path)
    assert ran.code == 0
    assert [path.name for path in tmp_path.iterdir()] == ["tmp"]
    assert tensors(tmp_path / "tmp")


@pytest.mark.parametrize(
    "line",
    [
        "merge --backend fsdp --local_dir D --target_dir D/huggingface",
        "--backend fsdp --hf_model_path H --local_dir D --target_dir D/huggingface",  # before `merge` had its name
        "merge D D/huggingface",
    ],
)
def test_the_weights_are_added_to_the_checkpoints_own_huggingface_folder(
    made: Made, tmp_path: Path, line: str
) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run") / ROLE
    home = source / "huggingface"
    for name in ("notes.txt", ".hidden", "folder/id_rsa"):
        (home / name).parent.mkdir(exist_ok=True)
        (home / name).write_text(name)
    before, seen = state(source), cli("inspect", source).out
    ran = cli(*line.replace("D", str(source)).replace(" H ", " nowhere ").split())
    assert ran.code == 0, ran.err
    after = state(source)
    added = {"huggingface/model.safetensors", "huggingface/ckptconv.json"}
    assert set(after) - set(before) == added
    assert {name for name in before if after[name] != before[name]} == {"huggingface/config.json"}
    assert cli("inspect", source).out == seen
    assert_equal(tensors(home), cast(tensors(made("fsdp2_w4") / "hub")))
    assert cli("verify", home, "--against", source).code == 0

    again = ("merge", source, home)
    assert cli(*again).errors == ["error: OUT already exists"]
    assert cli(*again, "--overwrite").code == 0
    del after[
        "huggingface/ckptconv.json"
    ]  # it tells which dtype config.json states, and that is corrected now
    assert after.items() <= state(source).items()


def test_another_folder_inside_the_checkpoint_is_not_filled_up(made: Made, tmp_path: Path) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run") / ROLE
    shutil.copytree(source / "huggingface", source / "other")
    assert cli("merge", source, source / "other").errors == ["error: OUT already exists"]


def test_hf_model_path_is_used_where_it_is_the_missing_piece(made: Made, tmp_path: Path) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run") / ROLE
    shutil.move(source / "huggingface", tmp_path / "base")
    words = ("--backend", "fsdp", "--local_dir", source, "--target_dir", tmp_path / "out")
    assert cli(*words).errors == ["error: no config.json found for this checkpoint"]
    assert cli(*words, "--hf_model_path", tmp_path / "base").code == 0
    assert_equal(tensors(tmp_path / "out"), cast(tensors(made("fsdp2_w4") / "hub")))


def test_hf_model_path_does_not_replace_the_checkpoints_own_config(made: Made, tmp_path: Path) -> None:
    words = ("merge", "--local_dir", made("fsdp2_w4"), "--target_dir", tmp_path / "out")
    assert cli(*words, "--hf_model_path", tmp_path / "nowhere").code == 0


def test_tying_that_the_checkpoint_contradicts_is_noted(made: Made, tmp_path: Path) -> None:
    ran = cli("merge", "--tie-word-embedding", made("fsdp2_w4"), tmp_path / "out", columns=300)
    assert "--tie-word-embedding changes nothing" in ran.flat
    tied = cli("merge", "--tie-word-embedding", made("fsdp2_tied_w4"), tmp_path / "tied", columns=300)
    assert "changes nothing" not in tied.flat


@pytest.mark.parametrize("flag", ["--is-value-model", "--is_value_model"])
def test_is_value_model_wants_a_value_head(made: Made, tmp_path: Path, flag: str) -> None:
    assert cli("merge", flag, made("critic_w2"), tmp_path / "critic").code == 0
    ran = cli("merge", flag, made("fsdp2_w4"), tmp_path / "actor")
    assert (ran.code, ran.errors) == (
        2,
        ["error: --is-value-model was given, but the checkpoint has no value head"],
    )
    assert not (tmp_path / "actor").exists()


@pytest.mark.parametrize("reference", ["--test_hf_dir", "--test-hf-dir"])
def test_verls_test_line_is_verify(made: Made, tmp_path: Path, reference: str) -> None:
    words = ("test", "--backend", "fsdp", "--local_dir", made("fsdp2_w4"), reference)
    assert cli(*words, made("fsdp2_w4") / "hub").code == 0
    assert cli(*words, made("lora_w4") / "hub").code == 1


def test_test_is_hidden(made: Made) -> None:
    assert not re.search(r"^\W*test\b", cli("--help").out, re.MULTILINE)
    assert cli("test", "--help").code == 0


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("merge",), "missing argument DIR"),
        (("merge", "D"), "missing argument OUT"),
        (("merge", "D", "O", "--local_dir", "D"), "DIR is given twice"),
        (("merge", "D", "O", "--target_dir", "O"), "OUT is given twice"),
        (("merge", "D", "O", "--lora", "yes"), "--lora does not accept yes"),
        (("merge", "D", "O", "--layout", "flat"), "--layout does not accept flat"),
        (("merge", "D", "O", "--dtype", "fp8"), "--dtype does not accept fp8"),
        (("merge", "D", "O", "--max-memory", "much"), '"much" is not a size'),
        (("merge", "D", "O", "--max-memory", "1MB"), "--max-memory is too small"),
        (("merge", "D", "O", "--max-shard-size", "5 potatoes"), '"5 potatoes" is not a size'),
        (("merge", "D", "O", "--backend", "jax"), "unknown backend 'jax'"),
        (("merge", "D", "O", "--private"), "--private and --no-private are for --push"),
        (("merge", "D", "O", "--step", "3"), "no step 3 in this run"),
        (("merge", "nowhere", "O"), "no such folder"),
        (("inspect", "nowhere"), "no such folder"),
    ],
)
def test_wrong_words_are_one_error_and_exit_code_2(
    made: Made, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    paths = {"D": str(made("fsdp2_w4")), "O": str(tmp_path / "out"), "nowhere": str(tmp_path / "nowhere")}
    ran = cli(*(paths.get(word, word) for word in words))
    assert ran.code == 2
    assert ran.out == ""
    assert [line[7 : 7 + len(says)] for line in ran.errors] == [says]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words", [("merge", "--bogus"), ("merge", "a", "b", "c"), ("bogus",), ("merge", "a", "b", "--step", "x")]
)
def test_words_that_typer_refuses_are_one_error_with_the_help_to_read(words: tuple[str, ...]) -> None:
    ran = cli(*words)
    assert (ran.code, ran.out) == (2, "")
    what, hint = ran.err.splitlines()
    assert what.startswith("error: ")
    label, program, *line = hint.split()
    assert (label, program) == ("hint", "ckptconv")
    assert cli(*line).code == 0


@pytest.mark.parametrize("words", [("merge", "a", "b", "--step", "x"), ("push", "a"), ("merg",)])
def test_words_that_typer_refuses_are_a_document_under_json(words: tuple[str, ...]) -> None:
    ran = cli(*words, "--json")
    error = json.loads(ran.out)["error"]
    assert (ran.code, error["code"], error["kind"]) == (2, 2, "usage")
