"""Everywhere a folder is taken: inspect, verify, merge with --base, --config, --also, --all-steps and --watch, and open."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.helpers import FIXTURES, ROLE, cli, tensors
from support.store.proxy import Proxy
from support.store.server import Server

import ckptconv
from ckptconv import CkptconvError, merge
from ckptconv.commands.merge import steps as steps_module
from ckptconv.commands.merge.steps import merge_steps

Made = Callable[[str], Path]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def same_weights(one: Path, other: Path) -> bool:
    """True if two folders hold the same tensors."""
    return tensors(one) == tensors(other)


def test_config(s3: Server, made: Made, tmp_path: Path) -> None:
    """The config, the tokenizer and the other small files of a model in a store."""
    folder = made("dcp_tp_w4") / "run"
    config = made("fsdp2_w4") / "hub"
    address = s3.put("places", "config", config)
    for place, name in ((config, "near"), (address, "far"), (f"{address}/config.json", "file")):
        cli("merge", folder, tmp_path / name, "--config", place)
    assert {path.name for path in (tmp_path / "far").iterdir()} == {
        path.name for path in (tmp_path / "near").iterdir()
    }
    assert same_weights(tmp_path / "far", tmp_path / "near")
    assert same_weights(tmp_path / "file", tmp_path / "near")
    assert (tmp_path / "far" / "config.json").read_bytes() == (tmp_path / "near" / "config.json").read_bytes()


def test_custom_code_of_a_model_in_a_store(s3: Server, made: Made, tmp_path: Path) -> None:
    """The files that a module of the model imports are found in its text, which is read from the store."""
    config = tmp_path / "config"
    shutil.copytree(made("fsdp2_w4") / "hub", config)
    (config / "modeling_own.py").write_text("from .norms import Norm\n")
    (config / "norms.py").write_text("class Norm: ...\n")
    (config / "notes.py").write_text("print('not a part of the model')\n")
    cli("merge", made("dcp_tp_w4") / "run", tmp_path / "out", "--config", s3.put("places", "code", config))
    assert {path.name for path in (tmp_path / "out").glob("*.py")} == {"modeling_own.py", "norms.py"}


@pytest.mark.parametrize("where", ["base", "both"])
def test_base(s3: Server, made: Made, tmp_path: Path, where: str) -> None:
    """An adapter is merged onto a base model in a store; the two may be in different buckets."""
    adapter, base = made("lora_w4") / "adapter", made("lora_w4") / "base"
    far = s3.put("bases", "base", base)
    source = s3.put("adapters", "adapter", adapter) if where == "both" else adapter
    for options in ({}, {"lora": "both"}):
        merge(source, tmp_path / "far", base=far, overwrite=True, **options)  # type: ignore[arg-type]
        merge(adapter, tmp_path / "near", base=base, overwrite=True, **options)  # type: ignore[arg-type]
        assert same_weights(tmp_path / "far", tmp_path / "near")
        written = b"".join(path.read_bytes() for path in (tmp_path / "far").rglob("*") if path.is_file())
        assert b"bases" not in written, "the name of the bucket is nobody's business"
        assert b"s3:" not in written


@pytest.mark.parametrize(("first", "second"), [("near", "far"), ("far", "near"), ("far", "far")])
def test_also(s3: Server, made: Made, tmp_path: Path, first: str, second: str) -> None:
    """Rank files of one checkpoint on a disk and in a store."""
    whole = made("fsdp2_w4")
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder, ranks in zip(folders, ((0, 2), (1, 3)), strict=True):
        (folder / ROLE).mkdir(parents=True)
        shutil.copytree(whole / ROLE / "huggingface", folder / ROLE / "huggingface")
        for rank in ranks:
            name = f"model_world_size_4_rank_{rank}.pt"
            shutil.copy(whole / ROLE / name, folder / ROLE / name)
    places = [
        folder if place == "near" else s3.put("also", f"{first}-{second}-{folder.name}", folder)
        for folder, place in zip(folders, (first, second), strict=True)
    ]
    ran = cli("merge", places[0], tmp_path / "model", "--also", places[1])
    assert ran.code == 0, ran.err
    merge(whole, tmp_path / "whole")
    assert same_weights(tmp_path / "model", tmp_path / "whole")
    assert "missing" in cli("merge", places[0], tmp_path / "half").err


def test_verify_against_a_checkpoint_in_a_store(s3: Server, made: Made, tmp_path: Path) -> None:
    run = made("fsdp2_w4")
    merge(run, tmp_path / "model")
    words = [tmp_path / "model", "--against", s3.put("verify", "run", run)]
    ran = cli("verify", *words)
    assert ran.code == 0, ran.out + ran.err
    assert "s3://verify/run" in ran.out
    damaged = tmp_path / "model" / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 1
    damaged.write_bytes(data)
    assert cli("verify", *words).code == 1


def without_places(text: str, *places: object) -> list[str]:
    """The lines of a screen, without those that name a place or a time."""
    lines = text.replace("\n    ", " ").splitlines()
    return [line for line in lines if not any(str(place) in line for place in places) and " s " not in line]


@pytest.fixture
def model(made: Made, tmp_path: Path) -> Path:
    """A model folder of several files, with its receipt."""
    merge(made("fsdp2_w4"), tmp_path / "model", max_shard_size=20_000)
    return tmp_path / "model"


def test_verify_a_model_folder_in_a_store(s3: Server, model: Path) -> None:
    """Alone it gives the screen of the same folder on a disk: headers by safetensors' reader, index, receipt, values."""
    address = s3.put("verify", "model", model)
    far, near = cli("verify", address), cli("verify", model)
    assert far.code == near.code == 0, far.out + far.err
    assert without_places(far.out, address) == without_places(near.out, model)
    assert "hashes" in far.out


@pytest.mark.parametrize(("one", "other"), [("far", "near"), ("near", "far"), ("far", "far")])
def test_verify_of_two_model_folders_in_stores(
    s3: Server, made: Made, model: Path, tmp_path: Path, one: str, other: str
) -> None:
    changed = shutil.copytree(model, tmp_path / "changed")
    file = max(changed.glob("*.safetensors"))
    data = bytearray(file.read_bytes())
    data[-5] ^= 1
    file.write_bytes(data)
    places = {"near": model, "far": s3.put("verify", "whole", model)}
    others = {"near": changed, "far": s3.put("verify", "changed", changed)}
    assert cli("verify", places[one], "--against", places[other]).code == 0
    ran = cli("verify", others[one], "--against", places[other])
    assert ran.code == 1, ran.err
    assert "its bytes are not those of the receipt's hash" in ran.out
    run = s3.put("verify", "run-too", made("fsdp2_w4"))
    assert cli("verify", places[one], "--against", run).code == 0
    assert cli("verify", others[one], "--against", run).code == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda data: data[:-100], "safetensors cannot open it"),
        (lambda data: b"\xff" * 8 + data[8:], "safetensors cannot open it"),
        (lambda data: data[:8] + b"!" + data[9:], "safetensors cannot open it"),
        (lambda data: data[:4], "safetensors cannot open it"),
    ],
)
def test_a_damaged_model_folder_in_a_store(
    s3: Server, model: Path, damage: Callable[[bytes], bytes], says: str
) -> None:
    file = max(model.glob("*.safetensors"))
    file.write_bytes(damage(file.read_bytes()))
    far, near = cli("verify", s3.put("verify", "damaged", model)), cli("verify", model)
    assert far.code == near.code == 1, far.err
    assert says in far.out
    assert says in near.out


def test_verify_runs_no_model_from_a_store(s3: Server, model: Path) -> None:
    ran = cli("verify", s3.put("verify", "logits", model), "--logits")
    assert ran.code == 2
    assert "omit --logits" in ran.err


def test_inspect_of_a_model_folder_reads_headers_alone(
    proxy: Proxy, s3: Server, made: Made, tmp_path: Path
) -> None:
    """Beginnings of files only, although the weights are larger; and nothing of the tokenizer."""
    from safetensors.numpy import save_file

    folder = tmp_path / "large"
    shutil.copytree(made("fsdp2_w4") / "hub", folder)
    (folder / "model.safetensors").unlink()
    (folder / "config.json").write_text('{"model_type": "not-known", "architectures": ["NoSuchModel"]}')
    for number in range(3):
        save_file(
            {f"x{number}": np.zeros(1 << 18, np.float32)},
            folder / f"model-{number + 1:05}-of-00003.safetensors",
        )
    address = s3.put("places", "large", folder)
    proxy.requests.clear()
    assert cli("inspect", address).code == 0
    reads = [request for request in proxy.requests if request.path.endswith(".safetensors")]
    assert len(reads) == 3
    assert {request.range for request in reads} == {"bytes=0-65535"}
    assert not any("tokenizer" in request.path for request in proxy.requests)


def test_verify_a_checkpoint_alone(s3: Server, made: Made) -> None:
    address = s3.put("verify", "alone", made("fsdp2_w4"))
    far, near = (cli("verify", place).out.splitlines() for place in (address, made("fsdp2_w4")))
    assert [line for line in far if address not in line] == [
        line for line in near if str(made("fsdp2_w4")) not in line
    ]
    assert any(address in line for line in far)


def test_a_step_and_a_role(s3: Server, tmp_path: Path) -> None:
    address = s3.put("places", "run", RUN)
    for words in (["--step", "1"], ["--step", "latest"], []):
        far, near = cli("inspect", address, *words, "--json"), cli("inspect", RUN, *words, "--json")
        assert far.code == near.code == 0
        assert far.out.replace(address, str(RUN)) == near.out
    merge(f"{address}/global_step_1/actor", tmp_path / "far")
    merge(RUN / "global_step_1" / "actor", tmp_path / "near")
    assert same_weights(tmp_path / "far", tmp_path / "near")


def test_a_rank_of_another_step_is_refused(s3: Server, tmp_path: Path) -> None:
    """By the scheduler's state next to its file, as on a disk."""
    folder = shutil.copytree(RUN / "global_step_2" / "actor", tmp_path / "actor")
    for kind in ("model", "optim", "extra_state"):
        name = f"{kind}_world_size_4_rank_1.pt"
        (folder / name).write_bytes((RUN / "global_step_1" / "actor" / name).read_bytes())
    ran = cli("merge", s3.put("places", "mixed", folder), tmp_path / "model")
    assert ran.code == 2
    assert "the rank files are of different steps" in ran.err


@pytest.mark.parametrize("change", ["config.json", "tokenizer.json"])
def test_verify_sees_an_edited_small_file(s3: Server, model: Path, change: str) -> None:
    """A config of other values, and a tokenizer with ids beyond the embedding."""
    file = model / change
    if change == "config.json":
        file.write_text(file.read_text().replace("{", '{"note": "edited",', 1))
    else:
        words = {"a": 0, "b": 10**6}
        file.write_text(
            json.dumps({"added_tokens": [], "normalizer": None, "model": {"vocab": words, "merges": []}})
        )
    address = s3.put("verify", f"edited-{change}", model)
    far, near = cli("verify", address), cli("verify", model)
    assert far.code == near.code, far.err
    assert without_places(far.out, address) == without_places(near.out, model)
    assert "since the merge" in far.out
    assert change == "config.json" or "ids up to 1,000,000" in " ".join(far.out.split())


def test_all_steps(s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(steps_module, "SAVED_AGAIN", 0.0)  # every object was written a moment ago
    address = s3.put("places", "steps", RUN)
    done = list(merge_steps(address, tmp_path / "out"))
    assert [(step.number, step.error) for step in done] == [(1, None), (2, None)]
    merge(RUN / "global_step_2", tmp_path / "alone")
    assert same_weights(tmp_path / "out" / "global_step_2", tmp_path / "alone")
    assert list(merge_steps(address, tmp_path / "out")) == [], "nothing has changed since"
    with pytest.raises(CkptconvError, match="no steps"):
        list(merge_steps(s3.put("places", "none", RUN / "global_step_2" / "actor"), tmp_path / "none"))


def test_watch_sees_a_step_that_is_saved_later(
    s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "SAVED_AGAIN", 0.0)
    store = s3.store("watched")
    s3.put("watched", "run/global_step_1", RUN / "global_step_1")
    store.put("run/latest_checkpointed_iteration.txt", b"1")
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        assert len(polls) < 5
        if len(polls) == 1:
            s3.put("watched", "run/global_step_2", RUN / "global_step_2")
            store.put("run/latest_checkpointed_iteration.txt", b"2")

    steps = merge_steps("s3://watched/run", tmp_path / "out", watch=True, sleep=sleep)
    assert [next(steps).number, next(steps).number] == [1, 2]
    assert same_weights(tmp_path / "out" / "global_step_2", _merged(tmp_path))


def test_a_step_that_the_store_does_not_list_does_not_stop_the_others(
    proxy: Proxy, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(steps_module, "SAVED_AGAIN", 0.0)
    address = s3.put("places", "forbidden-step", RUN)
    proxy.fail = lambda request: (
        403 if "list-type" in request.path and "global_step_1" in request.path else None
    )
    first, second = merge_steps(address, tmp_path / "out")
    assert first.error is not None
    assert "does not let these credentials read" in first.error.what
    assert (second.number, second.error) == (2, None)


def test_the_next_command_has_addresses(s3: Server, made: Made, tmp_path: Path) -> None:
    base = s3.put("places", "a base", made("lora_w4") / "base")
    ran = cli("merge", made("lora_w4") / "adapter", tmp_path / "model", "--base", base)
    assert ran.code == 0, ran.err
    assert "--base 's3://places/a base'" in ran.err


def test_steps_of_a_store_are_reported_by_their_address(s3: Server, tmp_path: Path) -> None:
    run = shutil.copytree(RUN, tmp_path / "run")
    (run / "global_step_1" / "actor" / "model_world_size_4_rank_1.pt").write_bytes(b"")
    address = s3.put("places", "reported", run)
    ran = cli("merge", address, tmp_path / "out", "--all-steps")
    assert ran.code == 2
    assert f"in     {address}" in ran.err
    assert "s3:/p" not in ran.err


@pytest.mark.parametrize("of", ["run", "step"])
def test_watch_goes_on_when_the_store_has_failed_for_a_while(
    proxy: Proxy, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, of: str
) -> None:
    """The second step's files do not change after the store was down, and it is converted all the same."""
    monkeypatch.setattr(steps_module, "SAVED_AGAIN", 0.0)
    store, key = s3.store("watched"), f"fails-{of}"
    s3.put("watched", f"{key}/global_step_1", RUN / "global_step_1")
    store.put(f"{key}/latest_checkpointed_iteration.txt", b"1")
    polls: list[float] = []

    def sleep(seconds: float) -> None:
        polls.append(seconds)
        assert len(polls) < 8
        if len(polls) == 1:
            s3.put("watched", f"{key}/global_step_2", RUN / "global_step_2")
            store.put(f"{key}/latest_checkpointed_iteration.txt", b"2")
            proxy.fail = lambda request: 403 if of == "run" or request.path.endswith("rank_0.pt") else None
        if len(polls) == 4:
            proxy.fail = lambda request: None

    steps = merge_steps(f"s3://watched/{key}", tmp_path / "out", watch=True, sleep=sleep)
    assert next(steps).number == 1
    waits = next(steps)
    assert waits.waiting
    assert waits.reason == "S3 does not let these credentials read here"
    again = next(steps)
    assert (again.number, again.error, len(polls)) == (2, None, 4), "it was reported once"


def _merged(tmp_path: Path) -> Path:
    merge(RUN / "global_step_2", tmp_path / "alone")
    return tmp_path / "alone"


def test_open_reads_what_is_asked_for(s3: Server, made: Made) -> None:
    address = s3.put("places", "open", made("fsdp2_w4"))
    far, near = ckptconv.open(address), ckptconv.open(made("fsdp2_w4"))
    assert list(far) == list(near)
    for name in near:
        assert np.array_equal(far[name].numpy(), near[name].numpy())
    name = next(iter(near))
    assert np.array_equal(far[name][1:3].numpy(), near[name][1:3].numpy())


def test_one_file_of_weights(s3: Server, made: Made) -> None:
    folder = made("fsdp2_w4") / "hub"
    address = s3.put("places", "one-file", folder)
    far, near = (cli("inspect", f"{place}/model.safetensors", "--json") for place in (address, folder))
    assert far.code == near.code == 0
    assert far.out.replace(address, str(folder)) == near.out


def test_a_dry_run_writes_nothing(s3: Server, made: Made, tmp_path: Path) -> None:
    address = s3.put("places", "dry", made("fsdp2_w4"))
    ran = cli("merge", address, tmp_path / "model", "--dry-run")
    assert ran.code == 0, ran.err
    assert list(tmp_path.iterdir()) == []
