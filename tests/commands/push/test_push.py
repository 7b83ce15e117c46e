"""Pushing over real HTTP to a Hub on this machine, in LFS mode and in Xet mode: what a push does."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from support.helpers import FIXTURES
from support.hub import TOKEN, Bench, Hub
from support.hub.refused import refused
from support.hub.store import File

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.commands.push.run import Pushed

pytest_plugins = ["support.hub.fixture"]

Push = Callable[..., Pushed]


def download(hub: Hub, to: Path, **options: object) -> Path:
    from huggingface_hub import snapshot_download

    options = {"endpoint": hub.url, "token": TOKEN, "cache_dir": to, **options}
    return Path(snapshot_download("alice/tiny", **options))  # type: ignore[arg-type]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


# --- what a push does


def test_creates_the_repository_and_sends_every_byte(
    hub: Hub, send: Push, folder: Path, tmp_path: Path
) -> None:
    before = contents(folder)
    steps: list[Progress] = []
    done = send(on_progress=steps.append)
    assert done.created
    assert done.uploaded
    assert done.url == f"{hub.url}/alice/tiny"
    assert done.commit == hub.store.repos["alice/tiny"].refs["main"]
    assert not hub.store.repos["alice/tiny"].private
    assert len(hub.requests("POST .*/commit/")) == 1

    got = contents(download(hub, tmp_path / "cache"))
    assert got.keys() - before.keys() == {"README.md", ".gitattributes"}
    assert {name: got[name] for name in before} == before
    assert contents(folder) == before, "the user's folder must stay as it was"
    assert TOKEN.encode() not in got["README.md"]
    assert dict(done.files) == {name: len(data) for name, data in got.items() if name != ".gitattributes"}
    assert done.nbytes == sum(dict(done.files).values()) == steps[-1].done == steps[-1].total
    assert [step.what.split()[0] for step in steps] == ["checking", "checking", "uploading", "uploaded"]


LOAD = """
import re, torch
from ckptconv.commands.push.run import push
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoModelForTokenClassification
from peft import PeftModel

ids = torch.arange(8)[None]

def as_the_card_says(folder, name, **known):
    "Push a folder, run the lines of its card, and hand back the logits."
    push(folder, name)
    (lines,) = re.findall("```python\\n(.*?)```", ModelCard.load(name).content, re.S)
    exec(lines, known)
    return known["model"](ids).logits

def same(*logits):
    print("equal" if torch.equal(*logits) else "different")

"""


def test_loads_with_transformers(folder: Path, tmp_path: Path) -> None:
    """A model in both modes, a value model and an adapter, each loaded by the lines of its own card.

    In processes of their own: HF_ENDPOINT counts only at import.
    """
    merge(FIXTURES / "verl_fsdp2_w4" / "run" / "global_step_2" / "critic", tmp_path / "critic", dtype="keep")
    merge(FIXTURES / "verl_lora_only_w2" / "run", tmp_path / "adapter")
    model = f"""
here = AutoModelForCausalLM.from_pretrained({str(folder)!r})(ids).logits
same(as_the_card_says({str(folder)!r}, "alice/tiny"), here)
"""
    others = f"""
critic, adapter = {str(tmp_path / "critic")!r}, {str(tmp_path / "adapter")!r}
same(as_the_card_says(critic, "alice/critic"), AutoModelForTokenClassification.from_pretrained(critic)(ids).logits)
load = lambda: AutoModelForCausalLM.from_pretrained({str(FIXTURES / "verl_lora_only_w2" / "base")!r})
there = as_the_card_says(adapter, "alice/adapter", base=load())
same(there, PeftModel.from_pretrained(load(), adapter)(ids).logits)
"""
    hubs = [Hub(tmp_path / mode / "hub", mode) for mode in ("lfs", "xet")]
    codes = [LOAD + model + others, LOAD + model]
    running = [Bench(hub, tmp_path / hub.mode).python(code) for hub, code in zip(hubs, codes, strict=True)]
    for run, hub, count in zip(running, hubs, (3, 1), strict=True):
        out, err = run.communicate(timeout=120)
        hub.stop()
        assert out == "equal\n" * count, err
        assert bool(hub.requests("^PUT /lfs/")) == (hub.mode == "lfs")
        assert bool(hub.requests("xet-write-token")) == (hub.mode == "xet")


def test_again_sends_nothing(hub: Hub, send: Push) -> None:
    first = send()
    sent, commits = hub.content_bytes(), len(hub.requests("/commit/"))
    again = send()
    assert not again.uploaded
    assert not again.created
    assert again.commit == first.commit
    assert hub.content_bytes() == sent > 80_000
    assert len(hub.requests("/commit/")) == commits
    assert send(create_pr=True).pull_request is None
    assert not hub.store.repos["alice/tiny"].pulls


def test_a_changed_file_is_all_that_is_committed(hub: Hub, send: Push, folder: Path) -> None:
    send()
    (folder / "notes.md").write_text("step 2")
    sent = hub.content_bytes()
    assert send(commit_message="Step 2").uploaded
    assert hub.content_bytes() == sent
    lines = [json.loads(line) for line in hub.requests("/commit/")[-1].body.splitlines()]
    assert lines[0]["value"]["summary"] == "Step 2"
    assert [line["value"]["path"] for line in lines[1:]] == ["notes.md"]


def test_pull_request_and_going_on_with_it(hub: Hub, send: Push, folder: Path) -> None:
    hub.store.create("alice/tiny")
    main = hub.store.repos["alice/tiny"].refs["main"]
    done = send(create_pr=True, commit_message="New weights", commit_description="from step 400")
    assert done.pull_request == done.url == f"{hub.url}/alice/tiny/discussions/1"
    repo = hub.store.repos["alice/tiny"]
    assert repo.refs["main"] == main
    assert "model-00001-of-00006.safetensors" in repo.at("refs/pr/1").files
    assert repo.pulls[0].title == "New weights"

    (folder / "notes.md").write_text("more")
    more = send(revision="refs/pr/1")
    assert more.uploaded
    assert more.pull_request == done.pull_request
    assert len(repo.pulls) == 1
    assert "notes.md" in repo.at("refs/pr/1").files
    assert repo.refs["main"] == main


def test_pull_request_to_somebody_else(hub: Hub, send: Push) -> None:
    hub.store.create("bob/model")
    assert send("bob/model", create_pr=True).pull_request
    assert hub.store.repos["bob/model"].pulls[0].author == "alice"


def test_branch_is_made_and_main_is_left(hub: Hub, send: Push) -> None:
    done = send(revision="run/step-400")
    repo = hub.store.repos["alice/tiny"]
    assert done.url == f"{hub.url}/alice/tiny/tree/run%2Fstep-400"
    assert set(repo.at("main").files) == {".gitattributes"}
    assert "config.json" in repo.at("run/step-400").files
    assert not send(revision="run/step-400").uploaded


def test_private(hub: Hub, send: Push) -> None:
    assert send(private=True).created
    assert hub.store.repos["alice/tiny"].private
    assert not send(private=True).uploaded
    assert not send().uploaded
    error = refused(send, private=False)
    assert error.what == "alice/tiny exists and is private; nothing was uploaded"
    assert error.hint == "hf repos settings alice/tiny --public"


def test_private_is_not_sent_to_a_public_repository(hub: Hub, send: Push) -> None:
    hub.store.create("alice/tiny")
    assert "exists and is public; nothing was uploaded" in refused(send, private=True).what
    assert not hub.requests("preupload|lfs|commit")


def test_a_name_without_owner_is_the_users(hub: Hub, send: Push) -> None:
    assert send("tiny").repo_id == "alice/tiny"
    assert send("lab/tiny").created


def test_include_exclude_and_hidden_files(hub: Hub, send: Push, folder: Path) -> None:
    for name in (
        ".ckptconv-lock",
        "model.safetensors.tmp",
        ".git/config",
        ".gitattributes",
        "logs/a.txt",
        "b.txt",
    ):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("x")
    done = send(include=["*.json", "*.txt", ".*", "*.tmp"], exclude=["logs/", "generation*"])
    names = {".gitattributes", "b.txt", "config.json", "model.safetensors.index.json"}
    assert {path for path, _ in done.files} == names == set(hub.store.repos["alice/tiny"].at("main").files)
    assert "no file to upload" in refused(send, include=["nothing"]).what


def test_dry_run_makes_no_request(hub: Hub, send: Push) -> None:
    done = send(dry_run=True, token=None)
    assert done.dry_run
    assert done.commit is None
    assert dict(done.files)["README.md"] > 100
    assert not hub.seen


def test_the_token_is_only_in_the_authorization_header(hub: Hub, send: Push) -> None:
    send()
    send(create_pr=True, include=["*.json"])
    for seen in hub.seen:
        others = {name: value for name, value in seen.headers.items() if name.lower() != "authorization"}
        assert TOKEN not in f"{seen.path} {others} {seen.body!r}", str(seen)
        given = {name.lower(): value for name, value in seen.headers.items()}.get("authorization")
        assert given == (None if str(seen).startswith("PUT /lfs/") else f"Bearer {TOKEN}"), str(seen)


# --- a README.md that is there


def test_a_readme_of_the_user_is_respected(hub: Hub, send: Push, folder: Path) -> None:
    (folder / "README.md").write_text("# mine\n")
    send()
    assert hub.store.repos["alice/tiny"].file("main", "README.md").data == b"# mine\n"


def state_step(folder: Path, step: int) -> None:
    """Leave a receipt that lists no hashes, and so contradicts no file."""
    receipt = {"source": {"step": step}, "tensors": {}, "files": {}}
    (folder / "ckptconv.json").write_text(json.dumps(receipt))


def test_a_readme_written_on_the_hub_is_kept(hub: Hub, send: Push, folder: Path) -> None:
    send()
    repo = hub.store.repos["alice/tiny"]
    state_step(folder, 2)
    send()
    card = repo.file("main", "README.md").data or b""
    assert b"| Step | 2 |" in card, "a card that nobody touched follows the receipt"
    edited = card.replace(b"# tiny", b"# My tiny model")
    repo.commit("main", "edited", {"README.md": File(len(edited), edited)})
    state_step(folder, 3)
    assert "README.md" not in dict(send().files)
    assert repo.file("main", "README.md").data == edited
