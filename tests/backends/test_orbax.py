"""Orbax checkpoints in MaxText's layout (tests/make/maxtext) become what MaxText's exporter makes of them."""

from __future__ import annotations

import json
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from support.helpers import assert_equal, cli, tensors, unpacked

from ckptconv import CkptconvError, inspect, merge, verify
from ckptconv.backends import open_checkpoint
from ckptconv.backends.orbax.names import of_model
from ckptconv.errors import Incomplete, Kind
from ckptconv.models.maxtext import to_hub, to_trained
from ckptconv.read.reader import read_numpy

CASES = ("llama", "llama_unscanned", "qwen2", "qwen3_moe")


def home(case: str) -> Path:
    return unpacked(f"maxtext_{case}")


def copied(case: str, to: Path) -> Path:
    """The folder of a step's item, in a copy."""
    shutil.copytree(home(case) / "run", to / "run")
    return to / "run" / "checkpoints" / "7" / "items"


@pytest.fixture
def _tensorstore() -> None:
    pytest.importorskip("tensorstore")


needs_tensorstore = pytest.mark.usefixtures("_tensorstore")


@needs_tensorstore
@pytest.mark.parametrize("case", CASES)
def test_a_run_becomes_what_maxtexts_own_functions_make_of_it(case: str, tmp_path: Path) -> None:
    merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(home(case) / "hf"))


@needs_tensorstore
def test_verify_compares_with_the_checkpoint(tmp_path: Path) -> None:
    merge(home("llama") / "run", tmp_path / "out", config=home("llama") / "hf")
    assert verify(tmp_path / "out", against=home("llama") / "run", config=home("llama") / "hf").ok


@needs_tensorstore
def test_inspect_of_a_step_with_a_config_compares_what_merge_would_write(tmp_path: Path) -> None:
    shutil.copy(home("llama") / "hf" / "config.json", copied("llama", tmp_path))
    found = inspect(tmp_path / "run")
    assert found.complete
    assert found.next is not None
    assert found.next.command == f"ckptconv merge {tmp_path / 'run'} MODEL"


@needs_tensorstore
@pytest.mark.parametrize("named", ["", "checkpoints", "checkpoints/7", "checkpoints/7/items"])
def test_every_folder_of_a_run_can_be_named(named: str) -> None:
    found = open_checkpoint(home("qwen2") / "run" / named)
    assert (found.step, len(found.tensors)) == (7, 38)


@needs_tensorstore
def test_inspect_leaves_out_the_state_of_the_optimizer_with_its_size() -> None:
    checkpoint = open_checkpoint(home("llama") / "run")
    assert {skipped.what: skipped.nbytes for skipped in checkpoint.skipped} == {"opt_state": 96, "step": 4}


@needs_tensorstore
def test_without_a_config_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match=r"no config\.json found"):
        merge(home("llama") / "run", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@needs_tensorstore
def test_the_config_of_another_class_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match=r"does not have the layout that config\.json implies"):
        merge(home("llama") / "run", tmp_path / "out", config=home("qwen2") / "hf")
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "gemma2", "architectures": ["Gemma2ForCausalLM"]})
    )
    with pytest.raises(CkptconvError, match="no table for the tensors of 'gemma2' in MaxText"):
        merge(home("llama") / "run", tmp_path / "out", config=tmp_path)


@needs_tensorstore
def test_names_that_no_class_knows_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="the names are not those of LlamaForCausalLM"):
        merge(unpacked("orbax") / "run", tmp_path / "out", config=home("llama") / "hf")


@needs_tensorstore
@pytest.mark.parametrize(
    ("case", "lost", "wanted"),
    [
        ("llama", "manifest.ocdbt", "the database that joins"),
        ("llama", "_METADATA", "which arrays there are is missing"),
        ("qwen3_moe", "params.params.decoder.layers.moe_block.wo/0.0.0.0", "chunk"),
        ("qwen3_moe", "params.params.token_embedder.embedding/.zarray", "cannot be read"),
    ],
)
def test_a_lost_file_is_named(case: str, lost: str, wanted: str, tmp_path: Path) -> None:
    step = copied(case, tmp_path)
    (step / lost).unlink()
    with pytest.raises(CkptconvError, match=wanted):
        merge(step, tmp_path / "out", config=home(case) / "hf")
    assert not (tmp_path / "out").exists()


@needs_tensorstore
def test_a_chunk_that_cannot_be_decoded_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    step = copied("qwen3_moe", tmp_path)
    path = step / "params.params.token_embedder.embedding" / "1.1"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(CkptconvError, match="a chunk of an array cannot be read") as error:
        merge(step, tmp_path / "out", config=home("qwen3_moe") / "hf")
    assert str(error.value.where).endswith("token_embedder.embedding")
    assert not (tmp_path / "out").exists()


@needs_tensorstore
def test_a_database_without_its_data_is_refused(tmp_path: Path) -> None:
    step = copied("llama", tmp_path)
    shutil.rmtree(step / "d")
    with pytest.raises(CkptconvError, match="the database of arrays cannot be read"):
        inspect(step)


def test_a_step_that_is_being_written_is_refused(tmp_path: Path) -> None:
    step = copied("llama", tmp_path)
    unfinished = step.parent.with_name("7.orbax-checkpoint-tmp-12")
    step.parent.rename(unfinished)
    with pytest.raises(Incomplete, match="was not finished"):
        inspect(unfinished / "items")


@needs_tensorstore
def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path: Path) -> None:
    step = copied("llama", tmp_path)
    view = open_checkpoint(step).tensors["token_embedder.embedding"].view
    file = view.chunks[0].file
    (step / "d" / "more").write_bytes(b"later")
    assert file.far.group.states_now([file.far]) != [file.far.state]  # type: ignore[attr-defined]


@needs_tensorstore
def test_an_array_that_goes_to_another_process_is_decoded_there() -> None:
    view = open_checkpoint(home("llama") / "run").tensors["decoder.layers.1.mlp.wo.kernel"].view
    again = pickle.loads(pickle.dumps(view))
    assert np.array_equal(read_numpy(again), read_numpy(view))


@needs_tensorstore
def test_too_little_room_for_decoding_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr("ckptconv.backends.orbax.decoded.os.fstatvfs", lambda handle: Full())
    with pytest.raises(CkptconvError, match="no room to decode") as error:
        merge(home("llama") / "run", tmp_path / "out", config=home("llama") / "hf")
    assert "TMPDIR" in str(error.value.hint)


def test_without_tensorstore_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorstore", None)
    with pytest.raises(CkptconvError, match="tensorstore, which is not installed") as error:
        inspect(home("llama") / "run")
    assert (error.value.kind, error.value.hint) == (Kind.ENVIRONMENT, "pip install 'ckptconv[orbax]'")


@needs_tensorstore
def test_layers_along_another_dim_are_refused(tmp_path: Path) -> None:
    from ckptconv.backends.orbax.names import by_layer
    from ckptconv.tensors.view import stored

    views = {
        "decoder.layers.mlp.wo.kernel": stored("f", 0, (3, 8, 4), "float32"),
        "decoder.layers.norm.scale": stored("f", 0, (3, 4), "float32"),
    }
    with pytest.raises(CkptconvError, match="do not have their layers along dim 1"):
        by_layer(views, tmp_path)


def test_the_models_arrays_are_chosen_from_a_state() -> None:
    linen = {("params", "params", "a", "kernel"), ("opt_state", "mu", "a", "kernel"), ("step",)}
    assert of_model(linen) == {("params", "params", "a", "kernel"): "a.kernel"}
    assert of_model({("a", "kernel", "value")}) == {("a", "kernel", "value"): "a.kernel"}
    assert of_model({("a", "params")}) == {("a", "params"): "a.params"}


@pytest.mark.parametrize("case", ["qwen2", "qwen3_moe"])
def test_the_rules_lead_back(case: str) -> None:
    config = json.loads((home(case) / "hf" / "config.json").read_text())
    hub = open_checkpoint(home(case) / "hf").tensors
    arrays = {name: read_numpy(tensor.view) for name, tensor in hub.items()}
    back = to_hub(to_trained(arrays, config), config)
    assert back.tensors.keys() == arrays.keys()
    for name, named in back.tensors.items():
        assert np.array_equal(np.asarray(named.value).reshape(named.shape), arrays[name]), name


def test_a_folder_with_a_folder_named_d_is_not_taken_for_orbax(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "10" / "d").mkdir(parents=True)
    done = cli("merge", tmp_path, tmp_path / "out")
    assert done.code == 2
    assert "no checkpoint found here" in done.err
