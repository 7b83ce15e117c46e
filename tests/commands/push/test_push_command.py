"""The command line of a push: `ckptconv push` with each flag, `merge --push`, verl's line; and the token in none of it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import FIXTURES, assert_one_error, cli
from support.hub import READ_TOKEN, TOKEN, Bench, Hub

from ckptconv.commands.push.run import Pushed

pytest_plugins = ["support.hub.fixture"]

Push = Callable[..., Pushed]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"

lfs = pytest.mark.parametrize("hub", ["lfs"], indirect=True)


@lfs
def test_every_flag(hub: Hub, folder: Path) -> None:
    (folder / "notes.txt").write_text("x")
    (folder / "log.txt").write_text("x")
    words = ("--private", "--revision", "v1", "--commit-message", "Step 2", "--commit-description", "of 400")
    ran = cli(
        "push", folder, "alice/tiny", *words, "--include", "*.txt", "--include", "*.json", "--exclude", "log*"
    )
    assert ran.code == 0, ran.err
    assert ran.out.startswith(f"✓ {hub.url}/alice/tiny/tree/v1   4 files, ")
    assert [line.split()[1] for line in ran.err.splitlines()] == [
        "checking",
        "checking",
        "uploading",
        "uploaded",
    ]
    repo = hub.store.repos["alice/tiny"]
    assert repo.private
    assert "config.json" not in repo.at("main").files
    assert {"notes.txt", "config.json"} < set(repo.at("v1").files)
    assert "log.txt" not in repo.at("v1").files
    header = json.loads(hub.requests("/commit/")[-1].body.splitlines()[0])["value"]
    assert (header["summary"], header["description"]) == ("Step 2", "of 400")

    again = cli(
        "push", folder, "alice/tiny", *words, "--include", "*.txt", "--include", "*.json", "--exclude", "log*"
    )
    assert again.out == f"✓ {hub.url}/alice/tiny/tree/v1   already up to date   private\n"
    ran = cli("push", folder, "alice/tiny", "--create-pr", "-q")
    assert ran == (0, f"{hub.url}/alice/tiny/discussions/1\n", "")


@lfs
def test_dry_run_and_json(hub: Hub, folder: Path) -> None:
    ran = cli("push", folder, "alice/tiny", "--dry-run", env={"HF_TOKEN": None})
    assert ran.code == 0
    assert ran.out.startswith("would push 10 files, ")
    assert "  README.md  " in ran.out
    assert not hub.seen
    pushed = json.loads(
        cli("push", folder, "alice/tiny", "--json", "--token", TOKEN, env={"HF_TOKEN": None}).out
    )
    assert pushed["url"] == f"{hub.url}/alice/tiny"
    assert pushed["created"] is pushed["uploaded"] is True
    refused = cli("push", folder, "bob/tiny", "--json")
    assert json.loads(refused.out)["error"]["what"] == "the token of alice has no write access to bob/tiny"


@lfs
def test_the_hint_is_the_same_command(hub: Hub, folder: Path) -> None:
    hub.fail("GET .*/api/models", 503)
    ran = cli(
        "push", folder, "alice/tiny", "--include", "*.json", "--exclude", "x y", "--commit-message", "Hi all"
    )
    assert_one_error(ran, "the Hub failed with status 503")
    line = f"ckptconv push {folder} alice/tiny --commit-message 'Hi all' --include '*.json' --exclude 'x y'"
    assert ran.err.rstrip().endswith(line)


@pytest.mark.parametrize("flag", ["--push", "--hf_upload_path", "--hf-upload-path"])
def test_merge_and_push(hub: Hub, tmp_path: Path, flag: str) -> None:
    """verl's line, word by word, and ours."""
    line = (
        "merge",
        "--backend",
        "fsdp",
        "--local_dir",
        RUN / "global_step_2" / "actor",
        "--target_dir",
        tmp_path / "O",
    )
    ran = cli(*line, flag, "alice/actor", "--private")
    assert ran.code == 0, ran.err
    merged, pushed = ran.out.splitlines()
    assert merged.startswith(f"✓ {tmp_path / 'O'}   ")
    assert pushed.startswith(f"✓ {hub.url}/alice/actor   ")
    repo = hub.store.repos["alice/actor"]
    assert repo.private
    there = {
        path.relative_to(tmp_path / "O").as_posix() for path in (tmp_path / "O").rglob("*") if path.is_file()
    }
    assert set(repo.at("main").files) == there | {"README.md", ".gitattributes"}


@lfs
def test_merge_and_push_quiet_and_as_json(hub: Hub, tmp_path: Path) -> None:
    line = ("merge", RUN, tmp_path / "O", "--push", "alice/run", "--overwrite")
    hub.store.create("alice/run", private=True)
    assert cli(*line, "-q") == (0, f"{tmp_path / 'O'}\n{hub.url}/alice/run\n", "")
    told = json.loads(cli(*line, "--json").out)
    assert told["target"] == str(tmp_path / "O")
    assert told["pushed"]["url"] == f"{hub.url}/alice/run"
    hub.seen.clear()
    assert cli(*line, "--dry-run").code == 0
    assert not hub.seen


@lfs
@pytest.mark.parametrize(
    ("name", "env", "says"),
    [
        ("alice/new", {"HF_TOKEN": "hf_wrongWrongWrong"}, "the Hub does not accept this token"),
        ("alice/new", {"HF_TOKEN": READ_TOKEN}, "the token of alice has no write access to alice/new"),
        ("bob/new", {}, "the token of alice has no write access to bob/new"),
        ("bob/taken", {}, "the token of alice has no write access to bob/taken"),
        ("alice/new", {"HF_TOKEN": None}, "no token for http"),
        ("a/b/c", {}, "is not a valid repository name"),
        ("alice/open --private", {}, "alice/open exists and is public"),
    ],
)
def test_a_push_that_cannot_be_is_told_before_the_merge(
    hub: Hub, tmp_path: Path, name: str, env: dict, says: str
) -> None:
    hub.store.create("bob/taken")
    hub.store.create("alice/open")
    ran = cli("merge", RUN, tmp_path / "O", "--push", *name.split(), env=env)
    assert_one_error(ran, says)
    assert not list(tmp_path.glob("*O*"))


@lfs
def test_what_cannot_be_merged_makes_no_repository(hub: Hub, tmp_path: Path) -> None:
    assert_one_error(
        cli("merge", tmp_path, tmp_path / "O", "--push", "alice/new"),
        "the folder is empty|no checkpoint found here",
    )
    assert not hub.seen


@lfs
def test_a_push_that_fails_after_the_merge_says_how_to_go_on(hub: Hub, tmp_path: Path) -> None:
    hub.fail("POST .*/commit/main", 503)
    ran = cli("merge", RUN, tmp_path / "O", "--push", "alice/new")
    assert ran.code == 2
    assert ran.err.rstrip().endswith(f"run it again to resume: ckptconv push {tmp_path / 'O'} alice/new")
    assert cli("push", tmp_path / "O", "alice/new").code == 0


def test_all_steps_are_not_pushed(tmp_path: Path) -> None:
    """Which of them would be main? The user says, with one line a step."""
    ran = cli("merge", RUN, tmp_path / "O", "--all-steps", "--push", "me/model")
    assert_one_error(
        ran, "cannot be combined with --step, --also or --push", names=["ckptconv push OUT/STEP org/name"]
    )


# --- the token


@pytest.mark.parametrize(
    "pattern", ["POST .*/commit/main", "GET .*/whoami", "GET .*/api/models/alice/tiny", "GET .*/auth-check"]
)
@pytest.mark.parametrize("how", [403, "drop"])
@lfs
def test_a_traceback_does_not_show_the_token(
    hub: Hub, folder: Path, pattern: str, how: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    """CKPTCONV_DEBUG lets the error through to Python, which prints the whole chain; loggers say all they can."""
    import traceback

    from ckptconv.errors import CkptconvError

    hub.store.create("alice/tiny")
    hub.fail(pattern, how)
    says = "the token of .* has no write access to alice/tiny" if how == 403 else "the connection to .* broke"
    with caplog.at_level(logging.DEBUG), pytest.raises(CkptconvError, match=says) as caught:
        cli("push", folder, "alice/tiny", "--token", TOKEN, env={"CKPTCONV_DEBUG": "1", "HF_TOKEN": None})
    shown = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert type(caught.value).__name__ in shown
    assert TOKEN not in shown
    assert TOKEN[3:] not in shown


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_no_debug_setting_shows_the_token(bench: Bench, folder: Path) -> None:
    """Everything that huggingface_hub, hf_xet and ckptconv can be asked to say, of a push that fails at its end."""
    loud = {"CKPTCONV_DEBUG": "1", "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug", "RUST_LOG": "trace"}
    bench.hub.fail("POST .*/commit/main", 403)
    run = bench.ckptconv("push", folder, "alice/tiny", "--token", TOKEN, HF_TOKEN="", **loud)
    out, err = run.communicate(timeout=120)
    assert run.returncode != 0
    assert "CkptconvError" in err
    assert bench.hub.content_bytes() > 80_000
    logs = b"".join(path.read_bytes() for path in bench.home.glob("hf_home/**/*.log"))
    for text in (out, err, logs.decode(errors="replace")):
        assert TOKEN not in text
        assert TOKEN[3:] not in text
