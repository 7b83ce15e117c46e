"""Real Megatron checkpoints (tests/make/megatron) become the model that was put into Megatron, bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401 - numpy learns bfloat16
import numpy as np
import pytest
from helpers import FIXTURES, unpacked
from safetensors.numpy import load_file

from ckptconv import CkptconvError, inspect, merge
from ckptconv.backends import open_checkpoint
from ckptconv.models.megatron import to_hub, to_trained
from ckptconv.models.megatron.tables import FAMILIES
from ckptconv.read import read_numpy

CASES = sorted(path.name.removesuffix(".tar.xz") for path in (FIXTURES / "megatron").glob("*.tar.xz"))
Arrays = dict[str, np.ndarray[Any, Any]]


def home(case: str) -> Path:
    return unpacked(f"megatron/{case}")


def truth(case: str) -> Arrays:
    found: Arrays = {}
    for path in (home(case) / "hf").glob("*.safetensors"):
        found.update(load_file(path))
    return found


def config(case: str) -> dict[str, Any]:
    return json.loads((home(case) / "hf" / "config.json").read_text())


def same(a: Arrays, b: Arrays) -> None:
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype, name
        assert a[name].shape == b[name].shape, name
        assert a[name].tobytes() == b[name].tobytes(), name


UNREAD = [case for case in CASES if "_mtp_" in case or case.startswith("lora_")]  # no table has these yet
SUPPORTED = [case for case in CASES if config(case).get("model_type") in FAMILIES and case not in UNREAD]


@pytest.mark.parametrize("case", SUPPORTED)
def test_the_model_comes_back_bit_for_bit(case: str, tmp_path: Path) -> None:
    result = merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf", dtype="keep")
    found: Arrays = {}
    for file in result.plan.files:
        found.update(load_file(tmp_path / "out" / file.name))
    same(found, truth(case))


@pytest.mark.parametrize("case", CASES)
def test_every_fixture_can_be_inspected_whatever_its_family(case: str) -> None:
    found = inspect(home(case) / "run")
    assert found.tensors
    assert found.nbytes


@pytest.mark.parametrize("case", sorted({config(case)["model_type"]: case for case in SUPPORTED}.values()))
def test_a_family_is_reversible(case: str) -> None:
    """Hub -> Megatron -> Hub is the identity, on torch tensors as on numpy arrays."""
    torch = pytest.importorskip("torch")
    hub = truth(case)
    back = to_hub(to_trained(hub, config(case)), config(case))
    same({name: t.value.reshape(t.shape) for name, t in back.tensors.items()}, hub)
    bits = {name: torch.from_numpy(array.view(f"i{array.itemsize}").copy()) for name, array in hub.items()}
    again = to_hub(to_trained(bits, config(case)), config(case))
    for name, tensor in again.tensors.items():
        assert torch.equal(tensor.value.reshape(tensor.shape), bits[name]), name


@pytest.mark.parametrize("case", sorted({config(case)["model_type"]: case for case in SUPPORTED}.values()))
def test_the_way_back_makes_what_megatron_stored(case: str) -> None:
    made = to_trained(truth(case), config(case))
    stored = open_checkpoint(home(case) / "run").tensors
    for name, array in made.items():
        if name not in stored:
            # Tied: Megatron keeps no head. A norm has two homes, by which the layer is dense or not.
            assert name == "output_layer.weight" or "norm" in name
            continue
        rows = read_numpy(stored[name].view)[: array.shape[0]]  # the vocabulary is padded
        assert rows.tobytes() == np.ascontiguousarray(array).tobytes(), name


@pytest.mark.parametrize("case", UNREAD)
def test_layers_that_no_table_knows_are_refused_not_dropped(case: str, tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match=r"does not know the stored tensor .*(mtp|adapter)\."):
        merge(home(case) / "run", tmp_path / "out", config=home(case) / "hf")
    assert not (tmp_path / "out").exists()


def case_with(case: str, tmp_path: Path) -> Path:
    if case not in CASES:
        pytest.skip(f"no fixture {case}")
    return Path(shutil.copytree(home(case) / "run", tmp_path / "run"))


def test_a_missing_distcp_file_is_named(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    lost = sorted(run.rglob("__1_0.distcp"))[0]
    lost.unlink()
    with pytest.raises(CkptconvError, match=r"__1_0\.distcp is missing"):
        merge(run, tmp_path / "out", config=home("qwen2_tp2") / "hf")
    assert not (tmp_path / "out").exists()


def test_a_file_on_another_disk_is_found_with_also(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    lost = sorted(run.rglob("__1_0.distcp"))[0]
    (tmp_path / "other").mkdir()
    shutil.move(lost, tmp_path / "other" / lost.name)
    (tmp_path / "other" / ".metadata").write_bytes((lost.parent / ".metadata").read_bytes())
    (tmp_path / "other" / "metadata.json").write_bytes((lost.parent / "metadata.json").read_bytes())
    merge(run, tmp_path / "out", config=home("qwen2_tp2") / "hf", also=[tmp_path / "other"])
    same(load_file(tmp_path / "out" / "model.safetensors"), truth("qwen2_tp2"))


def test_a_save_that_never_finished_is_said(tmp_path: Path) -> None:
    run = case_with("qwen2_v2", tmp_path)
    next(run.rglob("ckpt_contents.json")).unlink()
    with pytest.raises(CkptconvError, match="never finished"):
        open_checkpoint(run)


def test_a_missing_legacy_rank_is_named(tmp_path: Path) -> None:
    run = case_with("qwen2_mlm_legacy", tmp_path)
    shutil.rmtree(next(run.rglob("mp_rank_01_001")))
    with pytest.raises(CkptconvError, match="tp rank 1 of 2 is missing in pipeline stage 1"):
        open_checkpoint(run)


def test_an_unknown_architecture_lists_what_is_known(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    (tmp_path / "hf").mkdir()
    (tmp_path / "hf" / "config.json").write_text(json.dumps({**config("qwen2_tp2"), "model_type": "nobody"}))
    with pytest.raises(CkptconvError, match="nobody") as error:
        merge(run, tmp_path / "out", config=tmp_path / "hf")
    assert "qwen2" in str(error.value.wanted)
    assert "adding-a-model" in str(error.value.hint)


def test_a_config_with_another_number_of_heads_is_refused(tmp_path: Path) -> None:
    run = case_with("qwen2_tp2", tmp_path)
    (tmp_path / "hf").mkdir()
    wrong = {**config("qwen2_tp2"), "num_attention_heads": 5}
    (tmp_path / "hf" / "config.json").write_text(json.dumps(wrong))
    with pytest.raises(CkptconvError):
        merge(run, tmp_path / "out", config=tmp_path / "hf")
    assert not (tmp_path / "out").exists()
