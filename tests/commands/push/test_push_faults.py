"""Pushing to a Hub that fails, refuses or is not there, and pushing a folder that is not whole."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import edit_json, unpacked
from support.hub import OTHER_TOKEN, READ_TOKEN, TOKEN, Bench, Hub
from support.hub.refused import refused

from ckptconv.commands.merge.run import merge
from ckptconv.commands.push.run import Pushed, push

pytest_plugins = ["support.hub.fixture"]

Push = Callable[..., Pushed]


# --- faults in the middle, then run again


def test_killed_in_the_middle_then_resumed(bench: Bench, send: Push, folder: Path) -> None:
    """SIGKILL while the fourth of six shards is sent (LFS), or before the commit (Xet): only the rest is sent again."""
    hub = bench.hub
    lfs = hub.mode == "lfs"
    hub.fail("PUT /lfs/" if lfs else "POST .*/commit/main", "hang", skip=3 if lfs else 0)
    run = bench.ckptconv("push", folder, "alice/tiny")
    assert hub.hanging.wait(60)
    wait_until(lambda: not lfs or len(hub.requests("PUT /lfs/")) == 5)
    run.kill()
    run.communicate()
    there, sent = {seen.path for seen in hub.requests("PUT /lfs/")}, hub.content_bytes()
    assert "config.json" not in hub.store.repos["alice/tiny"].at("main").files

    before = len(hub.seen)
    assert send().uploaded
    again = {seen.path for seen in hub.seen[before:] if str(seen).startswith("PUT /lfs/")}
    assert len(again) == int(lfs)
    assert not again & there
    assert hub.content_bytes() - sent == sum(
        hub.store.large(Path(path).name).stat().st_size for path in again
    )
    files = hub.store.repos["alice/tiny"].at("main").files
    assert {path.name for path in folder.iterdir()} <= set(files)


def wait_until(done: Callable[[], bool]) -> None:
    """Not longer than half a minute."""
    for _ in range(600):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError("it did not come to that")


@pytest.mark.parametrize("how", [503, "drop"])
def test_a_passing_fault_is_ridden_out(hub: Hub, send: Push, how: int | str) -> None:
    hub.fail("PUT /lfs/" if hub.mode == "lfs" else "POST .*/commit/main", how)
    assert send().uploaded
    assert "config.json" in hub.store.repos["alice/tiny"].at("main").files


@pytest.mark.parametrize(
    ("how", "what"), [(503, "the Hub failed with status 503"), ("drop", "the connection to {url} broke")]
)
def test_a_fault_that_ends_the_push(hub: Hub, send: Push, folder: Path, how: int | str, what: str) -> None:
    """huggingface_hub tries some requests only once: in LFS mode the commit, in Xet mode the pull request."""
    hub.store.create("alice/tiny")
    pull = hub.mode == "xet"
    hub.fail("POST .*/discussions" if pull else "POST .*/commit/main", how)
    error = refused(send, create_pr=pull)
    assert error.what == what.format(url=hub.url)
    again = f"ckptconv push {folder} alice/tiny" + (" --create-pr" if pull else "")
    assert error.hint == f"run it again to resume: {again}"
    sent = hub.content_bytes()
    assert send(create_pr=pull).uploaded
    assert hub.content_bytes() == sent
    assert len(hub.store.repos["alice/tiny"].pulls) == int(pull)


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_a_pull_request_left_half_done(hub: Hub, send: Push, folder: Path) -> None:
    hub.store.create("alice/tiny")
    hub.fail("POST .*/commit/refs", 403)
    error = refused(send, create_pr=True)
    again = f"ckptconv push {folder} alice/tiny --revision refs/pr/1"
    assert error.hint == f"the pull request is open; finish it: {again}"
    assert send(revision="refs/pr/1").uploaded
    assert len(hub.store.repos["alice/tiny"].pulls) == 1


# --- refusals


@pytest.mark.parametrize(
    ("repo_id", "options", "what", "hint"),
    [
        (
            "alice/tiny",
            {"token": "hf_wrongWrongWrong"},
            "the Hub does not accept this token",
            "hf auth login",
        ),
        (
            "alice/tiny",
            {"token": "hf_wrong\nsecond"},
            "the token has invalid characters",
            "hf auth",
        ),
        (
            "alice/tiny",
            {"token": READ_TOKEN},
            "the token of alice has no write access to alice/tiny",
            "use a token",
        ),
        ("bob/new", {}, "the token of alice has no write access to bob/new", "another repo name"),
        ("bob/taken", {}, "the token of alice has no write access to bob/taken", "another repo name"),
        ("bob/secret", {}, "the token of alice has no write access to bob/secret", "another repo name"),
        ("a/b/c", {}, "'a/b/c' is not a valid repository name", "ORG/NAME"),
        ("alice/ti ny", {}, "'alice/ti ny' is not a valid repository name", "ORG/NAME"),
        ("alice/tiny", {"revision": "refs/pr/9"}, "alice/tiny has no refs/pr/9", "--revision refs/pr/9"),
        (
            "alice/tiny",
            {"revision": "v2", "create_pr": True},
            "a new pull request always starts at main",
            "--revision v2",
        ),
    ],
)
def test_refusals(hub: Hub, send: Push, repo_id: str, options: dict, what: str, hint: str) -> None:
    hub.store.create("bob/taken")
    hub.store.create("bob/secret", private=True)
    error = refused(send, repo_id, **options)
    assert error.what == what
    assert hint in (error.hint or "")
    assert hub.content_bytes() == 0
    assert not hub.requests("/commit/")


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
@pytest.mark.parametrize(
    ("status", "what"),
    [
        (400, "the Hub refused the request"),
        (402, "the Hub asks for a paid plan or more storage"),
        (412, "alice/tiny was changed during the upload"),
        (413, "a file is larger than the Hub takes"),
    ],
)
def test_what_the_hub_may_answer_to_a_commit(hub: Hub, send: Push, status: int, what: str) -> None:
    hub.fail("POST .*/commit/main", status)
    assert refused(send).what == what
    assert send().uploaded


def test_bad_front_matter(hub: Hub, send: Push, folder: Path) -> None:
    (folder / "README.md").write_text("---\na: [\n---\n")
    assert refused(send).what == "the front matter of README.md is not valid"
    assert hub.content_bytes() == 0


def test_a_server_that_repeats_the_token(hub: Hub, send: Push) -> None:
    from ckptconv.commands.push.errors import Job, explain

    error = explain(
        ValueError(f"bad header 'Bearer {TOKEN}' and {OTHER_TOKEN}"), Job("OUT", "a/b", hub.url, TOKEN)
    )
    assert TOKEN not in str(error)
    assert OTHER_TOKEN not in str(error)
    assert error.__cause__ is None


def test_dead_endpoint_fails_at_once(send: Push) -> None:
    started = time.monotonic()
    error = refused(send, endpoint="http://127.0.0.1:9")
    assert error.what == "cannot reach http://127.0.0.1:9"
    assert refused(send, endpoint="nowhere").what == "nowhere is not an address"
    assert time.monotonic() - started < 3


def spoil(folder: Path, how: str) -> None:
    shard = folder / "model-00002-of-00006.safetensors"
    index = folder / "model.safetensors.index.json"
    if how == "no folder":
        shutil.rmtree(folder)
    elif how == "no config":
        (folder / "config.json").unlink()
    elif how == "config is not JSON":
        (folder / "config.json").write_text("{")
    elif how == "no weights":
        index.unlink()
        for path in folder.glob("*.safetensors"):
            path.unlink()
    elif how == "shard missing":
        shard.unlink()
    elif how == "shard truncated":
        shard.write_bytes(shard.read_bytes()[:-5])
    elif how == "no header":
        shard.write_bytes(b"\x00")
    elif how == "no index":
        index.unlink()
    elif how == "index names another shard":
        index.write_text(index.read_text().replace("00002-of", "00003-of", 1))


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
@pytest.mark.parametrize(
    ("how", "what"),
    [
        ("no folder", "no such folder"),
        ("no config", "has no config.json"),
        ("config is not JSON", "not valid JSON"),
        ("no weights", "no .safetensors file"),
        ("shard missing", "missing"),
        ("shard truncated", "do not fill it"),
        ("no header", "truncated"),
        ("no index", "the shards have no index"),
        ("index names another shard", "the index places"),
    ],
)
def test_a_folder_that_is_not_whole(hub: Hub, send: Push, folder: Path, how: str, what: str) -> None:
    spoil(folder, how)
    error = refused(send)
    assert what in error.what
    assert error.what.endswith("; nothing was uploaded")
    assert error.hint
    assert str(folder) in str(error)
    assert not hub.seen


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
@pytest.mark.parametrize(
    ("spoilt", "found"),
    [
        ({"num_hidden_layers": 3}, "missing: Qwen2ForCausalLM has it and 8 more"),
        ({"num_hidden_layers": 1}, "model.layers.1."),
        ({"intermediate_size": 65}, "model.layers.0.mlp."),
    ],
)
def test_a_folder_that_is_another_model(hub: Hub, send: Push, folder: Path, spoilt: dict, found: str) -> None:
    """Every file is whole; the tensors are not those of the class that config.json names."""
    edit_json(folder / "config.json", layer_types=None, **spoilt)
    for options in ({}, {"dry_run": True}):
        error = refused(send, **options)
        assert error.what == "the tensors do not match the model named in config.json; nothing was uploaded"
        assert found in (error.found or "")
        assert error.hint == f"ckptconv verify {folder}"
    assert not hub.store.repos


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_class_of_its_own_and_a_bias_that_is_missing_are_sent(hub: Hub, send: Push, folder: Path) -> None:
    edit_json(folder / "config.json", architectures=["OddForCausalLM"], model_type="odd")
    assert send().uploaded
    merge(unpacked("megatron/critic_tp2") / "run", folder.parent / "critic")  # no score.bias
    assert push(folder.parent / "critic", "alice/critic").uploaded


# --- as a process of its own


TELL = """
import sys
from ckptconv.errors import CkptconvError
from ckptconv.commands.push.run import push
try:
    print(push({folder!r}, "alice/tiny").url)
except CkptconvError as error:
    print(error, file=sys.stderr)
    sys.exit(int(error.code))
"""


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_refusals_from_the_environment(bench: Bench, folder: Path) -> None:
    code = TELL.format(folder=str(folder))
    cases = [
        (
            {"HF_HUB_OFFLINE": "1"},
            "HF_HUB_OFFLINE is set, so nothing is uploaded\n",
            "HF_HUB_OFFLINE=0 ckptconv push",
        ),
        ({"HF_TOKEN": ""}, f"no token for {bench.hub.url}\n", "hf auth login"),
        ({"HF_TOKEN": "hf_wrongWrongWrong"}, "the Hub does not accept this token\n", "hf auth login --force"),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "cannot reach http://127.0.0.1:9\n", "ckptconv push"),
    ]
    running = [(bench.python(code, **env), what, hint) for env, what, hint in cases]
    for run, what, hint in running:
        out, err = run.communicate(timeout=60)
        assert run.returncode == 2
        assert out == ""
        assert err.startswith(what)
        assert hint in err
        assert "Traceback" not in err
        assert "hf_wrong" not in err
        assert TOKEN not in err
    assert not bench.hub.requests("/commit/|/repos/create")


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_import_is_cheap(bench: Bench) -> None:
    heavy = {"huggingface_hub", "torch", "transformers", "numpy"}
    code = f"import sys, ckptconv.commands.push; print({heavy} & set(sys.modules))"
    assert bench.python(code).communicate(timeout=60) == ("set()\n", "")
