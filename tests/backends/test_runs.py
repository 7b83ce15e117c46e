"""Which step and which role of a run is taken, for the folder names of each trainer; on files that verl wrote."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from support.helpers import FIXTURES, REPO, assert_one_error, cli, tensors, unpacked

from ckptconv import merge
from ckptconv.backends import open_checkpoint
from ckptconv.backends.registry import step_named, trainers
from ckptconv.backends.runs import steps_of
from ckptconv.errors import CkptconvError

ACTOR = FIXTURES / "verl_fsdp1_w2" / "run" / "global_step_1" / "actor"
# (older, newer): the folders of one run, where the alphabet would often take the wrong one
NAMES = {
    "verl": ("global_step_9", "global_step_10"),
    "DeepSpeed": ("global_step9", "global_step10"),
    "Megatron": ("iter_0000009", "iter_0000010"),
    "torchtitan": ("step-9", "step-10"),
    "OLMo-core": ("step9", "step10"),
    "NeMo-RL, prime-rl": ("step_9", "step_10"),
    "NeMo-Automodel": ("epoch_0_step_9", "epoch_1_step_10"),
    "NeMo 2": ("m--val_loss=9.00-step=9-consumed_samples=80.0", "m--val_loss=1.00-step=10-consumed_samples=90.0"),
    "transformers": ("checkpoint-9", "checkpoint-10"),
    "accelerate": ("checkpoint_9", "checkpoint_10"),
    "Lightning": ("epoch=0-step=9.ckpt", "epoch=1-step=10.ckpt"),
    "Lightning, named": ("qwen-epoch=09-step=9-loss=0.50.ckpt", "qwen-epoch=10-step=10-loss=0.40.ckpt"),
    "Fabric": ("step-000009.ckpt", "step-000010.ckpt"),
    "Composer": ("ep0-ba9", "ep0-ba10"),
    "AReaL": ("epoch0epochstep9globalstep9", "epoch1epochstep0globalstep10"),
}  # fmt: skip


def steps(run: Path, *names: str) -> Path:
    """A run with the files of one small checkpoint in each of some step folders."""
    for name in names:
        shutil.copytree(ACTOR, run / name)
    return run


@pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)
def test_the_highest_step_is_the_latest_and_every_step_can_be_named(
    names: tuple[str, str], tmp_path: Path
) -> None:
    run = steps(tmp_path / "run", *names)
    older, newer = (run / name for name in names)
    assert list(steps_of(run)) == [9, 10]
    assert (open_checkpoint(run).root, open_checkpoint(run).step) == (newer, 10)
    assert open_checkpoint(run, step="latest").root == newer
    assert (open_checkpoint(run, step=9).root, open_checkpoint(run, step=9).step) == (older, 9)
    assert open_checkpoint(older).step == 9
    with pytest.raises(CkptconvError, match="no step 7 in this run"):
        open_checkpoint(run, step=7)


def test_steps_in_the_subfolder_where_trainers_put_them_are_found(tmp_path: Path) -> None:
    steps(tmp_path / "run" / "checkpoints", "step_9/trainer", "step_10/trainer")
    found = open_checkpoint(tmp_path / "run")
    assert (found.step, found.role) == (10, "trainer")
    steps(tmp_path / "run" / "checkpoint", "step-3")
    with pytest.raises(CkptconvError, match="several folders of steps"):
        open_checkpoint(tmp_path / "run")


def test_the_command_line_takes_a_number_and_latest(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "ep0-ba100", "ep0-ba1000")
    for word, step in (("latest", 1000), ("100", 100)):
        out = tmp_path / word
        assert cli("merge", run, out, "--step", word).code == 0
        assert f'"step": {step}' in (out / "ckptconv.json").read_text()
    assert cli("merge", run, tmp_path / "x", "--step", "newest").code == 2
    with pytest.raises(CkptconvError, match="step does not accept 'newest'"):
        open_checkpoint(run, step="newest")  # type: ignore[arg-type]


@pytest.mark.parametrize("newest", ["last.ckpt", "last-v1.ckpt"])
def test_lightnings_last_folder_is_the_latest(newest: str, tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "epoch=0-step=2.ckpt", "epoch=1-step=10.ckpt", newest)
    assert open_checkpoint(run).root == run / newest
    assert open_checkpoint(run, step="latest").root == run / newest
    assert open_checkpoint(run, step=10).root == run / "epoch=1-step=10.ckpt"


def test_a_last_folder_that_is_older_than_a_numbered_one_is_reported(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "epoch=0-step=2.ckpt", "epoch=1-step=10.ckpt", "last.ckpt")
    torch.save({"epoch": 0, "global_step": 2}, run / "last.ckpt" / "meta.pt")
    found = open_checkpoint(run)
    assert (found.root, found.step) == (run / "last.ckpt", 2)
    assert "the run calls step 2 its latest, and also holds step 10" in found.notes
    torch.save({"epoch": 1, "global_step": 10}, run / "last.ckpt" / "meta.pt")
    found = open_checkpoint(run)
    assert found.step == 10
    assert not any("its latest" in note for note in found.notes)
    assert open_checkpoint(run, step=10).root == run / "epoch=1-step=10.ckpt"


def test_nemos_last_folder_wins_over_the_same_step_and_says_so(tmp_path: Path) -> None:
    name = "m--val_loss=1.00-step=9-consumed_samples=80.0"
    run = steps(tmp_path / "run", name, f"{name}-last")
    found = open_checkpoint(run)
    assert found.root == run / f"{name}-last"
    assert f"also there: {name}" in " ".join(found.notes)


def test_a_bare_number_is_a_step_only_next_to_the_mark_of_a_run(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "10", "9")
    with pytest.raises(CkptconvError, match="several models here"):
        open_checkpoint(run)
    (run / "latest.txt").write_text("10")
    assert open_checkpoint(run).root == run / "10"
    assert open_checkpoint(run, step=9).root == run / "9"


@pytest.mark.parametrize(
    ("mark", "text"),
    [
        ("latest_checkpointed_iteration.txt", "9"),
        ("latest_ckpt_global_step.txt", "9"),
        ("latest.txt", "9\n"),
        ("latest", "global_step_9"),
    ],
)
def test_the_step_that_a_mark_names_is_the_latest_and_later_ones_are_reported(
    mark: str, text: str, tmp_path: Path
) -> None:
    run = steps(tmp_path / "run", "global_step_9", "global_step_10")
    (run / mark).write_text(text)
    for wanted in (None, "latest"):
        found = open_checkpoint(run, step=wanted)  # type: ignore[arg-type]
        assert found.root == run / "global_step_9"
        assert "the run calls step 9 its latest, and also holds step 10" in found.notes


def test_marks_that_disagree_are_refused(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "global_step_9", "global_step_10")
    (run / "latest").write_text("global_step_10")
    (run / "latest_checkpointed_iteration.txt").write_text("9")
    with pytest.raises(CkptconvError, match="marks disagree"):
        open_checkpoint(run)
    assert open_checkpoint(run, step=10).step == 10


def test_two_folders_of_one_step_are_refused(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "global_step_9", "step_10", "global_step_10")
    with pytest.raises(CkptconvError, match="several folders of step 10") as refused:
        open_checkpoint(run)
    assert refused.value.found == "global_step_10, step_10"
    assert open_checkpoint(run, step=9).step == 9


def test_every_trainers_step_names_are_in_the_documentation() -> None:
    page = (REPO / "docs" / "runs.md").read_text(encoding="utf-8")
    for trainer in trainers():
        if trainer.steps:
            assert trainer.name in page
        for name in (*trainer.marks, *trainer.below):
            assert f"`{name}" in page


def test_a_long_mark_is_not_searched_for_patterns() -> None:
    assert step_named("-step=1" * 100_000) is None


# --- roles


@pytest.mark.parametrize(
    ("roles", "taken"),
    [
        (("actor", "critic"), "actor"),
        (("critic", "policy"), "policy"),
        (("critic", "policy", "ref"), "policy"),
        (("reference", "trained"), "trained"),
        (("critic", "mine"), "mine"),
        (("critic", "reference"), "critic"),
        (("student", "teacher"), "student"),
    ],
)
def test_the_trained_model_comes_before_critics_and_references(
    roles: tuple[str, ...], taken: str, tmp_path: Path
) -> None:
    step = steps(tmp_path / "run", *(f"global_step_1/{role}" for role in roles)) / "global_step_1"
    for path in (step, step.parent):
        found = open_checkpoint(path)
        assert (found.role, found.root) == (taken, step / taken)
        others = ", ".join(role for role in sorted(roles) if role != taken)
        assert any(note.startswith("not read: ") for note in found.notes), others
    for role in roles:
        assert open_checkpoint(step / role).root == step / role


def test_role_folders_above_the_steps_are_ranked_too(tmp_path: Path) -> None:
    """OpenRLHF's _actor/global_stepN and AReaL's actor/epochEepochstepSglobalstepG."""
    for actor, critic in (("_actor", "_critic"), ("actor", "critic")):
        run = tmp_path / actor
        for role in (actor, critic):
            steps(run / role, "epoch0epochstep9globalstep9", "epoch0epochstep10globalstep10")
        found = open_checkpoint(run)
        assert (found.role, found.step) == (actor, 10)
        assert f"not read: {critic} in the same folder (pass its folder to convert it)" in found.notes
        assert open_checkpoint(run, step=9).root == run / actor / "epoch0epochstep9globalstep9"
    shutil.copytree(tmp_path / "actor" / "actor", tmp_path / "actor" / "policy")
    with pytest.raises(CkptconvError, match="several models here"):
        open_checkpoint(tmp_path / "actor")


def test_models_of_equal_rank_are_refused_with_a_list(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "global_step_1/left", "global_step_1/right")
    assert_one_error(
        cli("merge", run, tmp_path / "out"), "there are several models here", names=["left, right"]
    )
    assert not (tmp_path / "out").exists()
    assert open_checkpoint(run / "global_step_1" / "left").role is None


def test_a_role_is_ranked_over_all_layouts(tmp_path: Path) -> None:
    """A critic of rank files does not win over a policy that lies in another layout."""
    step = steps(tmp_path / "run", "global_step_1/critic") / "global_step_1"
    merge(ACTOR, step / "policy")
    found = open_checkpoint(step)
    assert (found.role, found.backend) == ("policy", "huggingface")


def test_shards_come_before_an_exported_model_of_the_same_rank(tmp_path: Path) -> None:
    step = steps(tmp_path / "run", "global_step_1/ckpt") / "global_step_1"
    merge(ACTOR, step / "hf")
    assert open_checkpoint(step).root == step / "ckpt"


# --- --backend megatron


@pytest.mark.parametrize("name", ["megatron", "megatron_legacy"])
def test_backend_megatron_means_rank_files_too(name: str, tmp_path: Path) -> None:
    """verl's own line: merge --backend megatron --local_dir D --target_dir O."""
    run = unpacked("megatron/critic_verl_legacy")
    folder = next(path for path in sorted(run.rglob("critic")) if path.is_dir())
    ran = cli("merge", "--backend", name, "--local_dir", folder, "--target_dir", tmp_path / "out")
    assert ran.code == 0, ran.err
    assert tensors(tmp_path / "out")


def test_an_unknown_backend_is_answered_with_the_names(tmp_path: Path) -> None:
    steps(tmp_path, "global_step_1")
    with pytest.raises(CkptconvError, match="unknown backend 'jax'") as refused:
        open_checkpoint(tmp_path, backend="jax")
    assert refused.value.wanted == "fsdp, megatron, dcp, deepspeed, nanotron, orbax, huggingface"


def test_rank_files_tell_of_the_role_next_to_them(tmp_path: Path) -> None:
    run = unpacked("megatron/critic_verl_legacy")
    critic = next(path for path in sorted(run.rglob("critic")) if path.is_dir())
    for role in ("actor", "critic"):
        shutil.copytree(critic, tmp_path / "global_step_1" / role)
    found = open_checkpoint(tmp_path)
    assert "not read: critic in the same folder (pass its folder to convert it)" in found.notes


# --- marks that name a folder which is no trainer's usual step


def test_a_folder_that_only_the_mark_names_is_the_latest_step(tmp_path: Path) -> None:
    """DeepSpeed's tags are any text, and Megatron calls a converted model's folder "release"."""
    run = steps(tmp_path / "run", "global_step9", "best")
    (run / "latest").write_text("/data/run/best\n")
    assert open_checkpoint(run).root == run / "best"
    assert open_checkpoint(run, step=9).root == run / "global_step9"


def test_a_mark_that_names_a_folder_which_is_not_there_is_refused(tmp_path: Path) -> None:
    run = steps(tmp_path / "run", "iter_0000010")
    (run / "latest_checkpointed_iteration.txt").write_text("release")
    with pytest.raises(CkptconvError, match="'release' its latest step, but has no folder") as error:
        open_checkpoint(run)
    assert str(run / "iter_0000010") in str(error.value.hint)


def read_from(run: Path) -> Path:
    return Path(open_checkpoint(run).files[0].path).parent


def test_the_mark_inside_a_step_counts_too(tmp_path: Path) -> None:
    """transformers' checkpoint-N/ holds DeepSpeed's global_stepN/ and its mark."""
    run = Path(shutil.copytree(unpacked("deepspeed_trainer_z2_w2") / "run", tmp_path / "run"))
    inside = run / "checkpoint-7"
    assert read_from(run) == inside / "global_step7"
    shutil.copytree(inside / "global_step7", inside / "global_step5")
    (inside / "latest").write_text("global_step5")
    assert read_from(run) == inside / "global_step5"
    (inside / "latest").write_text("global_step99")
    with pytest.raises(CkptconvError, match="calls step 99 its latest, but has no folder for it"):
        open_checkpoint(run)
