"""verify and merge with org/name where a folder would do: downloaded into huggingface_hub's cache, over real HTTP."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import assert_equal, assert_one_error, cast, cli, save_ws1, tensors
from support.hub import Bench, Hub
from support.hub.refused import refused
from support.hub.store import File

from ckptconv.commands.merge.run import merge
from ckptconv.commands.push.run import Pushed, push
from ckptconv.commands.verify import verify
from ckptconv.hub.names import cached_name, model_name, repo_of
from ckptconv.hub.source import local_or_hub

pytest_plugins = ["support.hub.fixture"]

Push = Callable[..., Pushed]

SMALL = {
    "tokenizer.json": b'{"a": 1}\n',
    "chat_template.jinja": b"{{ x }}",
    "code/modeling_tiny.py": b"# custom code\n",
}


@pytest.fixture
def repo(hub: Hub, send: Push, folder: Path) -> str:
    """alice/tiny with a tokenizer, custom code, a card, and much that is no part of a model."""
    for name, data in SMALL.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(data)
    send()
    others = ("optimizer.pt", "pytorch_model.bin", "onnx/model.onnx", "tiny.gguf", "runs/events.1")
    hub.store.repos["alice/tiny"].commit("main", "more", {name: File(6, b"others") for name in others})
    hub.seen.clear()
    return "alice/tiny"


def test_verify_against_a_repository(hub: Hub, repo: str, folder: Path) -> None:
    from huggingface_hub import constants

    ran = cli("verify", folder, "--against", repo)
    assert ran.code == 0, ran.err
    assert "Download  alice/tiny: 12 files, up to " in ran.err
    (cached,) = (Path(constants.HF_HUB_CACHE) / "models--alice--tiny" / "snapshots").iterdir()
    fetched = {path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()}
    weights = {path.name for path in folder.glob("*.safetensors*")}
    assert fetched == {"config.json", "generation_config.json", *SMALL, *weights}

    hub.seen.clear()
    found = verify(folder, against=repo)
    assert found.ok
    assert found.equal == found.compared == 27
    assert found.against == Path(repo)
    assert not hub.requests("/resolve/|/storage/"), "all of it lies in the cache"


def test_verify_a_repository_that_differs(hub: Hub, repo: str, folder: Path) -> None:
    shard = max(folder.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-4] + b"\0\0\0\x40")
    assert cli("verify", repo).code == 0
    assert cli("verify", repo, "--against", folder).code == 1
    push(folder, repo, revision="broken")
    assert cli("verify", folder, "--against", f"{repo}@broken").code == 0
    assert cli("verify", folder, "--against", repo, "--revision", "broken").code == 0
    assert cli("verify", repo, "--revision", "broken", "-q").out == "yes\n"
    assert_one_error(cli("verify", repo, "--revision", "v9"), "alice/tiny has no revision v9")
    assert_one_error(
        cli("verify", folder, "--against", "alice/none"),
        "alice/none is neither a local folder nor a Hub repository",
        names=["hf auth"],
    )


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_offline(bench: Bench, repo: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """HF_HUB_OFFLINE: what lies in the cache is used, and nothing is asked."""
    from huggingface_hub import constants

    local_or_hub(repo)
    bench.hub.seen.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert verify(folder, against=repo).ok
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(bench.home / "empty"))
    error = refused(verify, folder, against=repo)
    assert error.what == "alice/tiny: no such folder, and no Hub repository of that name in the offline cache"
    assert error.hint == "HF_HUB_OFFLINE=0 hf download alice/tiny"
    assert not bench.hub.seen


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_offline_with_a_part_in_the_cache(hub: Hub, repo: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    from ckptconv.commands.inspect import inspect

    inspect(repo)  # leaves config.json and the index there
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    for call in (verify, inspect):
        assert (
            refused(call, repo).what == "HF_HUB_OFFLINE is set, and alice/tiny is not complete in the cache"
        )


def test_a_download_that_breaks_goes_on(hub: Hub, repo: str, folder: Path) -> None:
    hub.fail("GET .*(/resolve/|/storage/)", "drop", skip=3)
    assert verify(folder, against=repo).ok


def test_merge_with_a_base_on_the_hub(
    hub: Hub, repo: str, folder: Path, adapter: Path, tmp_path: Path
) -> None:
    """The base's tokenizer arrives byte for byte, its card does not, and the receipt says its name."""
    shutil.copytree(adapter, tmp_path / "adapter")
    here = merge(tmp_path / "adapter", tmp_path / "here", base=folder)
    ran = cli("merge", tmp_path / "adapter", tmp_path / "there", "--base", repo)
    assert ran.code == 0, ran.err
    assert_equal(tensors(tmp_path / "there"), tensors(tmp_path / "here"))
    assert here.plan.nbytes > 80_000
    for name, data in SMALL.items():
        assert (tmp_path / "there" / name).read_bytes() == data
    assert not (tmp_path / "there" / "README.md").exists()
    assert json.loads((tmp_path / "there" / "ckptconv.json").read_text())["base_model"] == "alice/tiny"


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_an_adapter_names_its_base(hub: Hub, repo: str, adapter: Path, tmp_path: Path) -> None:
    mine = Path(shutil.copytree(adapter, tmp_path / "adapter"))
    config = json.loads((mine / "adapter_config.json").read_text())
    (mine / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": repo}))
    error = refused(merge, mine, tmp_path / "out")
    assert (error.hint or "").startswith("--base alice/tiny (")
    assert merge(mine, tmp_path / "out", base=repo).target.is_dir()


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_merge_with_a_config_on_the_hub(hub: Hub, repo: str, folder: Path, tmp_path: Path) -> None:
    """Only the small files are fetched for it."""
    from transformers import AutoModelForCausalLM

    run = save_ws1(AutoModelForCausalLM.from_pretrained(folder).state_dict(), {}, tmp_path / "run")
    shutil.rmtree(run / "global_step_7" / "actor" / "huggingface")
    assert_one_error(cli("merge", run, tmp_path / "out"), "no config.json found for this checkpoint")
    ran = cli("merge", run, tmp_path / "out", "--config", repo)
    assert ran.code == 0, ran.err
    assert_equal(tensors(tmp_path / "out"), cast(tensors(folder)))
    assert (tmp_path / "out" / "tokenizer.json").read_bytes() == SMALL["tokenizer.json"]
    assert not (tmp_path / "out" / "README.md").exists()
    assert not hub.requests("/storage/|safetensors")


def test_which_words_are_repositories(tmp_path: Path) -> None:
    for text in ("org/name", "hf://org/name", Path("hf://org/name")):
        assert str(repo_of(text)) == "org/name"
    assert str(repo_of("org/name@refs/pr/3")) == "org/name@refs/pr/3"
    assert str(repo_of("Qwen/Qwen2.5-0.5B", "main")) == "Qwen/Qwen2.5-0.5B@main"
    for text in (
        "name",
        "./org/name",
        "/org/name",
        "org/name/step",
        "~/name",
        "org/",
        ".hidden/name",
        "",
        tmp_path,
    ):
        assert repo_of(text) is None, text


@pytest.mark.parametrize(
    ("said", "name"),
    [
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B"),
        ("/data/hub/models--Qwen--Qwen2.5-0.5B/snapshots/ab12", "Qwen/Qwen2.5-0.5B"),
        ("/mnt/secret/models/Qwen2.5-7B/", "Qwen2.5-7B"),
        (r"C:\models\Qwen2.5-7B", "Qwen2.5-7B"),
        ("", None),
        (None, None),
    ],
)
def test_a_models_name_holds_no_path(said: str | None, name: str | None) -> None:
    assert model_name(said) == name
    assert cached_name(said) in (None, name)


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_open_and_merge_take_a_repository(hub: Hub, repo: str, folder: Path, tmp_path: Path) -> None:
    """As inspect and verify do; D12 of the review."""
    import ckptconv

    opened = ckptconv.open(repo)
    assert {name: tensor.numpy().tobytes() for name, tensor in opened.items()} == {
        name: tensor.numpy().tobytes() for name, tensor in ckptconv.open(folder).items()
    }
    merge(f"{repo}@main", tmp_path / "out")
    assert_equal(tensors(tmp_path / "out"), tensors(folder))
    assert json.loads((tmp_path / "out" / "ckptconv.json").read_text()).keys() >= {"tensors", "source"}
    for keywords in ({"step": 7}, {"also": [tmp_path]}):
        error = refused(ckptconv.open, repo, **keywords)
        assert error.kind is ckptconv.Kind.USAGE
