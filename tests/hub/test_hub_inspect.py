"""inspect org/name: a repository on the Hub, from its file list, small files and headers, over real HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from support.helpers import cli
from support.hub import OTHER_TOKEN, Bench, Hub
from support.hub.refused import refused
from support.hub.store import File

from ckptconv.commands.inspect import Inspection, inspect
from ckptconv.commands.push.run import Pushed

pytest_plugins = ["support.hub.fixture"]

Push = Callable[..., Pushed]


def header_bytes(folder: Path) -> int:
    """All that the safetensors format puts before the data, of every file."""
    return sum(8 + int.from_bytes(path.read_bytes()[:8], "little") for path in folder.glob("*.safetensors"))


def of_the_folder(found: Inspection, folder: Path) -> Inspection:
    """What inspect says of the same model in a folder, but for where it lies."""
    local = inspect(folder)
    ranks = [
        replace(rank, files=tuple(f"hf://alice/tiny/{Path(f).name}" for f in rank.files))
        for rank in local.ranks
    ]
    named = {"path": found.path, "root": found.root, "layout": found.layout, "next": found.next}
    assert found.next.command == "ckptconv verify alice/tiny"
    return replace(local, **named, ranks=tuple(ranks))


def test_says_what_the_folder_says_and_fetches_headers_alone(hub: Hub, send: Push, folder: Path) -> None:
    send()
    hub.seen.clear()
    found = inspect("alice/tiny")
    assert found == of_the_folder(found, folder)
    assert (
        found.layout
        == f"Hugging Face model on the Hub, main at {hub.store.repos['alice/tiny'].refs['main'][:8]}"
    )
    assert max(row.count for row in found.rows) == 2, "equal layers are one row"

    of_files = hub.requests("^(GET|HEAD) (/storage/|.*/resolve/)")
    small = sum((folder / name).stat().st_size for name in ("config.json", "model.safetensors.index.json"))
    assert sum(seen.sent for seen in of_files) == header_bytes(folder) + small
    large = hub.requests("^GET /storage/")
    assert sum(seen.sent for seen in large) == header_bytes(folder) < 5_000 < 80_000
    assert len(large) == 2 * 6
    assert all(seen.status == 206 for seen in large)
    assert not any("authorization" in map(str.lower, seen.headers) for seen in large)


def test_a_second_look_fetches_no_small_file(hub: Hub, send: Push) -> None:
    send()
    inspect("alice/tiny")
    hub.seen.clear()
    inspect("alice/tiny")
    assert not [str(seen) for seen in hub.requests("^GET .*/resolve/.*json")]


def test_the_screen_is_a_folders_screen(hub: Hub, send: Push, folder: Path) -> None:
    send()
    there, here = cli("inspect", "alice/tiny", columns=100), cli("inspect", folder, columns=100)
    assert there.code == here.code == 0, there.err
    above_the_command = there.out[: there.out.index("  next:")].splitlines()[1:]
    assert above_the_command == here.out[: here.out.index("  next:")].splitlines()[1:]
    assert there.out.splitlines()[0].startswith("format  Hugging Face model on the Hub, main at ")
    assert there.out.splitlines()[-1].endswith("ckptconv verify alice/tiny")
    as_json = json.loads(cli("inspect", "alice/tiny", "--json").out)
    assert as_json["tensors"] == json.loads(cli("inspect", folder, "--json").out)["tensors"]


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_revision(hub: Hub, send: Push, folder: Path) -> None:
    send()
    config = (folder / "config.json").read_bytes()
    edited = config.replace(
        b"Qwen2ForCausalLM", b"Qwen2ForAnything"
    )  # a class that ckptconv has no list of tensors for
    repo = hub.store.repos["alice/tiny"]
    repo.refs["run/two"] = repo.refs["main"]
    repo.commit("run/two", "two", {"config.json": File(len(edited), edited)})
    assert inspect("alice/tiny").architecture == "Qwen2ForCausalLM"
    for path, revision in (("alice/tiny@run/two", None), ("hf://alice/tiny", "run/two")):
        found = inspect(path, revision=revision)
        assert found.architecture == "Qwen2ForAnything"
        assert "run/two at" in found.layout
    assert cli("inspect", "alice/tiny", "--revision", "run/two").code == 0
    assert refused(inspect, "alice/tiny@v9").what == "alice/tiny has no revision v9"
    assert refused(inspect, "alice/tiny@v1", revision="v2").what == "two revisions are given"


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_path_that_is_here_wins(
    hub: Hub, send: Push, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    send()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "alice").mkdir()
    folder.rename(tmp_path / "alice" / "tiny")
    hub.seen.clear()
    assert inspect("alice/tiny").layout == "Hugging Face model folder"
    assert inspect(Path("alice/tiny")).root == Path("alice/tiny")
    assert not hub.seen
    assert "a local folder wins" in (refused(inspect, "alice/tiny", revision="main").hint or "")
    for spelled in ("hf://alice/tiny", Path("hf://alice/tiny")):
        assert "on the Hub" in inspect(spelled).layout


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_an_adapter(hub: Hub, send: Push, folder: Path, adapter: Path) -> None:
    from ckptconv.commands.push.run import push

    push(adapter, "alice/adapter")
    hub.seen.clear()
    found = inspect("alice/adapter")
    assert found.lora == inspect(adapter).lora
    assert found.layout.startswith("PEFT adapter on the Hub, main at ")
    assert sum(seen.sent for seen in hub.requests("^GET /storage/")) == header_bytes(adapter)


# --- what cannot be shown


def put(hub: Hub, files: dict[str, bytes], name: str = "alice/odd") -> None:
    """A repository with these files."""
    hub.store.create(name).commit(
        "main", "files", {path: File(len(data), data) for path, data in files.items()}
    )


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_torch_files_alone(hub: Hub) -> None:
    index = {"weight_map": {"a": "pytorch_model-00001-of-00002.bin", "b": "pytorch_model-00002-of-00002.bin"}}
    put(
        hub,
        {
            "config.json": b'{"architectures": ["LlamaForCausalLM"]}',
            "pytorch_model.bin.index.json": json.dumps(index).encode(),
            "pytorch_model-00001-of-00002.bin": bytes(30_000_000),
            "pytorch_model-00002-of-00002.bin": bytes(20_000_000),
        },
    )
    error = refused(inspect, "alice/odd")
    assert "only torch.save files" in error.what
    assert error.found is not None
    assert error.found.startswith("2 files pytorch_model-00001-of-00002.bin")
    assert error.found.endswith("0.05 GB, 2 tensors; model LlamaForCausalLM")
    assert error.hint == "hf download alice/odd, then inspect the folder that it prints"
    assert not hub.requests("GET .*[.]bin$")


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
@pytest.mark.parametrize(
    ("files", "what"),
    [
        ({"notes.md": b"x"}, "this repository has no model weights"),
        ({"model.safetensors": b"\xff" * 40}, "not a safetensors file, or a truncated one"),
        ({"model.safetensors": b"abc"}, "not a safetensors file, or a truncated one"),
        (
            {"model.safetensors": b"\x02" + bytes(7) + b"{}!"},
            "the tensors of the safetensors file do not fill it",
        ),
        ({"model.safetensors": b"\x02" + bytes(7) + b"{!"}, "the safetensors header is not valid JSON"),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "model-00001-of-00001.safetensors"}}'},
            "a shard named in the index is missing",
        ),
        (
            {"model.safetensors.index.json": b'{"weight_map": {"a": "../x.safetensors"}}'},
            "outside its folder",
        ),
    ],
)
def test_odd_repositories(hub: Hub, files: dict[str, bytes], what: str) -> None:
    put(hub, files)
    assert what in refused(inspect, "alice/odd").what


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_storage_without_ranges_is_not_read_whole(
    hub: Hub, send: Push, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy may answer with the whole file: it is left where it is."""
    send()
    hub.ignore_ranges = True
    error = refused(inspect, "alice/tiny")
    assert "does not support range requests" in error.what
    assert (error.found or "").startswith("status 200")


@pytest.mark.parametrize("how", [503, "drop"])
@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_a_passing_fault_is_ridden_out(hub: Hub, send: Push, how: int | str) -> None:
    send()
    hub.fail("GET /storage/", how, skip=3)
    assert inspect("alice/tiny").tensors > 20


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_who_may_not_look(hub: Hub, send: Push, monkeypatch: pytest.MonkeyPatch) -> None:
    send(private=True)
    missing = "{} is neither a local folder nor a Hub repository you can access"
    assert refused(inspect, "alice/nothing").what == missing.format("alice/nothing")
    monkeypatch.setenv("HF_TOKEN", "hf_wrongWrongWrong")
    assert refused(inspect, "alice/tiny").what == "the Hub does not accept this token"
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert refused(inspect, "alice/tiny").what == missing.format("alice/tiny")
    hub.store.repos["alice/tiny"].private, hub.store.repos["alice/tiny"].gated = False, True
    error = refused(inspect, "alice/tiny")
    assert error.what == "alice/tiny is gated, and this account has not been let in"
    assert error.hint == f"ask for it at {hub.url}/alice/tiny, then: hf auth login"


@pytest.mark.parametrize("hub", ["lfs"], indirect=True)
def test_as_processes(bench: Bench, send: Push, tmp_path: Path) -> None:
    """Zero, offline with and without the cache, a dead endpoint, no org/name at all."""
    send()
    code = "from huggingface_hub import snapshot_download as get; get('alice/tiny')"
    cached = str(tmp_path / "cached")
    assert bench.python(code, HF_HOME=cached).wait(60) == 0
    dead = "http://127.0.0.1:9"
    cases = [
        ("alice/tiny", {}, 0, "Qwen2ForCausalLM"),
        ("alice/tiny", {"HF_TOKEN": ""}, 0, "Qwen2ForCausalLM"),
        ("alice/tiny", {"HF_HUB_OFFLINE": "1", "HF_HOME": cached}, 0, "Qwen2ForCausalLM"),
        (
            "alice/tiny",
            {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "empty")},
            2,
            "error: alice/tiny: no such folder, and no Hub repository of that name",
        ),
        (
            "alice/tiny",
            {"HF_ENDPOINT": dead},
            2,
            f"error: alice/tiny: no such folder, and {dead} cannot be reached",
        ),
        ("nowhere", {}, 2, "error: no such folder\n"),
        ("alice/tiny/x", {}, 2, "error: no such folder\n"),
    ]
    running = [(bench.ckptconv("inspect", path, **env), code, says) for path, env, code, says in cases]
    for run, code, says in running:
        out, err = run.communicate(timeout=60)
        assert run.returncode == code, err
        assert says in (err if code else out), err + out
        assert not (out if code else err)
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("https://huggingface.co/org/name", "org/name"),
        ("https:/huggingface.co/org/name/", "org/name"),
        ("http://hf.co/org/name", "org/name"),
        ("huggingface.co/org/name/tree/main", "org/name@main"),
        ("https://huggingface.co/org/name/tree/v1.0", "org/name@v1.0"),
        ("https://huggingface.co/org/name/blob/refs/pr/3/config.json", "org/name@refs/pr/3"),
        ("https://huggingface.co/org/name?library=transformers", "org/name"),
    ],
)
def test_the_address_of_a_page_is_its_repository(text: str, name: str) -> None:
    from ckptconv.hub.names import repo_of

    assert str(repo_of(Path(text))) == name


@pytest.mark.parametrize("text", ["https://huggingface.co/datasets/org/name", "https://example.com/org/name"])
def test_the_address_of_something_else_is_no_repository(text: str) -> None:
    from ckptconv.hub.names import repo_of

    assert repo_of(Path(text)) is None
