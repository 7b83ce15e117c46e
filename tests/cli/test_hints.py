"""What an error tells to do: it fits the mistake, and works when typed."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, ROLE, assert_one_error, cli, own_copy

Made = Callable[[str], Path]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return Path(shutil.copytree(RUN, tmp_path / "run"))


def actor(run: Path, step: int = 2) -> Path:
    return run / f"global_step_{step}" / "actor"


@pytest.mark.parametrize("command", ["inspect", "merge", "verify"])
def test_the_address_of_a_page_on_the_hub_is_taken_as_its_repository(command: str, tmp_path: Path) -> None:
    words = [
        command,
        "https://huggingface.co/nobody/nothing/tree/v2",
        *([tmp_path / "out"] if command == "merge" else []),
    ]
    assert_one_error(
        cli(*words), "nobody/nothing: no such folder, and no Hub repository of that name in the offline cache"
    )


def test_swapped_folders_are_told_and_the_hint_works(run: Path, tmp_path: Path) -> None:
    ran = cli("merge", tmp_path / "out", run)
    assert_one_error(ran, r"no such folder", names=("are the two swapped?",))
    line = ran.err.split("comes first: ckptconv ", 1)[1].split("\n")[0]
    assert cli(*shlex.split(line)).code == 0


@pytest.mark.parametrize("command", ["inspect", "merge", "verify"])
def test_a_misspelled_folder_is_answered_with_the_one_that_is_there(
    command: str, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(run.parents[1])
    beside = run.parent.name
    for typed in (f"{beside}/rum", f"./{beside}/rum", str(run.parent / "rum")):
        ran = cli(command, typed, *(["out"] if command == "merge" else []))
        assert_one_error(ran, r"no such folder", names=(f"did you mean {Path(typed).parent / 'run'}?",))


def test_a_target_that_is_no_model_is_not_to_be_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "thesis.tex").write_text("text")
    ran = cli("merge", run, tmp_path / "notes")
    assert_one_error(
        ran,
        r"OUT already exists",
        names=("it is not a model folder: choose another one, or did you swap DIR and OUT?",),
    )
    assert "--overwrite" not in ran.err


@pytest.mark.parametrize("name", ["megatron", "dcp", "deepspeed"])
def test_the_files_of_another_backend_are_named(run: Path, tmp_path: Path, name: str) -> None:
    ran = cli("merge", "--backend", name, run, tmp_path / "out")
    assert_one_error(ran, rf"no {name} checkpoint here; these are files of another format")
    assert "model_world_size_W_rank_R.pt (verl FSDP)" in ran.err
    assert "omit --backend" in ran.err


@pytest.mark.parametrize(
    "names", [("optim_world_size_4_rank_0.pt", "optim_world_size_4_rank_1.pt"), ("optimizer.pt",)]
)
def test_a_folder_of_an_optimizer_alone_is_called_so(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    assert_one_error(
        cli("merge", tmp_path, tmp_path.with_name("out")), r"only files of an optimizer are here"
    )


def test_the_newest_whole_step_is_named(run: Path, tmp_path: Path) -> None:
    (actor(run) / "model_world_size_4_rank_3.pt").unlink()
    ran = cli("merge", run, tmp_path / "out", columns=300)
    assert_one_error(ran, r"rank 3 of 4 is missing", names=("step 1 is whole: --step 1",))
    assert cli("merge", run, tmp_path / "out", "--step", "1").code == 0


def test_no_step_is_named_if_none_is_whole_or_one_was_asked_for(run: Path, tmp_path: Path) -> None:
    (actor(run) / "model_world_size_4_rank_3.pt").unlink()
    assert "is whole" not in cli("merge", run, tmp_path / "out", "--step", "2").err
    (actor(run, 1) / "model_world_size_4_rank_0.pt").unlink()
    assert "is whole" not in cli("merge", run, tmp_path / "out").err


@pytest.mark.parametrize("size", [0, 5000])
def test_a_file_that_ends_too_early_may_still_be_written(run: Path, tmp_path: Path, size: int) -> None:
    os.truncate(actor(run) / "model_world_size_4_rank_1.pt", size)
    ran = cli("merge", run, tmp_path / "out", "--step", "2", columns=300)
    assert "is it still being written?" in ran.err


def test_a_missing_tokenizer_is_reported(made: Made, tmp_path: Path) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run")
    assert "Tokenizer none" not in cli("merge", source, tmp_path / "with").err
    for path in (source / ROLE / "huggingface").glob("*token*"):
        path.unlink()
    ran = cli("merge", source, tmp_path / "without", columns=300)
    assert "Tokenizer none next to config.json; --config org/name" in ran.flat
    with_tokenizer = ("--config", made("fsdp2_w4") / ROLE / "huggingface")
    assert "Tokenizer none" not in cli("merge", source, tmp_path / "config", *with_tokenizer).err


def test_a_proxy_is_named_without_its_password(tmp_path: Path) -> None:
    env = {"HTTPS_PROXY": "http://ann:secret@127.0.0.1:9", "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path)}
    from support.helpers import process

    ran = process("inspect", "org/name", **env)
    assert ran.code == 2
    assert "HTTPS_PROXY=http://***@127.0.0.1:9" in ran.err
    assert "secret" not in ran.err


def test_next_works_when_it_is_pasted(made: Made, tmp_path: Path) -> None:
    source = own_copy(made("fsdp2_w4"), tmp_path / "run with a space")
    shutil.move(source / ROLE / "huggingface", tmp_path / "base")
    shown = cli("inspect", source, columns=400).out
    line = shown.split("next: ckptconv ", 1)[1].split("\n")[0]
    words = shlex.split(line.replace("MODEL", "").replace("BASE_", str(tmp_path / "base")))
    assert "--config" in words
    assert cli("merge", words[1], tmp_path / "out", *words[2:]).code == 0
