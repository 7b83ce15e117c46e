"""Files of torch.save are read bit for bit without torch."""

from __future__ import annotations

import zipfile
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import torch
from support.torch_files import (
    numbers,
    rebuilt,
    same_bits,
    saved,
    storage,
    tensor,
    text,
    torch_file,
    view_of_root,
)

from ckptconv.errors import CkptconvError
from ckptconv.formats.crcs import check_crcs
from ckptconv.formats.inert import Inert
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.read.reader import read_numpy, same_place
from ckptconv.tensors.dtypes import known

DTYPES = (
    "float64",
    "float32",
    "float16",
    "bfloat16",
    "int64",
    "int32",
    "int16",
    "int8",
    "uint8",
    "bool",
    "complex64",
)

# Without a storage class of their own in torch: saved as bytes, by _rebuild_tensor_v3 with the dtype beside them.
NEWER = ("float8_e4m3fn", "float8_e5m2", "float8_e8m0fnu", "uint16", "uint32", "uint64")


@pytest.mark.parametrize("dtype", [*DTYPES, *NEWER])
def test_every_dtype_is_read_bit_for_bit(dtype: str, tmp_path: Path) -> None:
    x = tensor(dtype, 6, 8)
    content = {
        "whole": x,
        "transposed": x.t(),
        "slice": x[1:5:2, 3:],
        "offset": x[2],
        "expanded": x[0:1, :].expand(4, 8),
        "scalar": x[3, 3],
        "own scalar": x[3, 3].clone(),
        "empty": x[:0],
        "own empty": x[:0].clone(),
        "four dims": x.reshape(2, 3, 2, 4).permute(3, 0, 2, 1),
    }
    file = saved(tmp_path, content)
    assert list(file.root) == list(content)
    assert [name for name, wanted in content.items() if not same_bits(file, name, wanted)] == []


@pytest.mark.parametrize(
    ("dtype", "says"),
    [
        ("complex128", "a tensor has an unknown dtype"),
        ("complex32", "a tensor has an unknown dtype"),
    ],
)
def test_a_dtype_that_is_not_known_is_refused(dtype: str, says: str, tmp_path: Path) -> None:
    assert not known(dtype)
    x = torch.empty(3, dtype=getattr(torch, dtype))
    with pytest.raises(CkptconvError, match=says):
        view_of_root(saved(tmp_path, x))


@pytest.mark.parametrize("lazy", ["conj", "neg"])
def test_a_lazily_conjugated_tensor_is_not_read_as_if_it_were_plain(lazy: str, tmp_path: Path) -> None:
    x = torch.complex(torch.ones(3), torch.arange(3.0)).conj()
    try:
        file = saved(tmp_path, {"x": x if lazy == "conj" else x.imag})
        found = read_numpy(file.view(file.root["x"]))
    except CkptconvError:
        return
    assert found.tolist() == (x.resolve_conj() if lazy == "conj" else x.imag.resolve_neg()).tolist()


def test_parameters_and_buffers_of_a_module_come_with_its_names(tmp_path: Path) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.BatchNorm1d(5), torch.nn.Embedding(4, 3))
    state = module.state_dict()
    assert state._metadata
    file = saved(tmp_path, state)
    assert list(file.root) == list(state)
    assert all(same_bits(file, name, wanted) for name, wanted in state.items())
    file = saved(tmp_path, dict(module.named_parameters()))
    assert all(same_bits(file, name, wanted) for name, wanted in module.named_parameters())


def test_tensors_on_one_storage_have_one_place(tmp_path: Path) -> None:
    x = tensor("float32", 4, 6)
    file = saved(tmp_path, {"a": x, "b": x.view(24).view(4, 6), "upper": x[:2], "copy": x.clone()})
    view = {name: file.view(record) for name, record in file.root.items()}
    assert same_place(view["a"], view["b"])
    assert view["upper"].chunks[0].start == view["a"].chunks[0].start
    assert not same_place(view["a"], view["copy"])
    assert len(file.entries) == 2


def test_a_small_tensor_of_integers_is_read_in_c_order(tmp_path: Path) -> None:
    x = torch.tensor([[3, -1, 7], [0, 2, 1 << 40]])
    file = saved(tmp_path, {"a": x, "b": x.t()[1:], "c": x.to(torch.int32), "d": x[:0], "e": x.float()})
    read = {name: file.ints(record) for name, record in file.root.items() if name != "e"}
    assert read == {"a": x.flatten().tolist(), "b": [-1, 2, 7, 1 << 40], "c": [3, -1, 7, 0, 2, 0], "d": []}
    with pytest.raises(CkptconvError, match="not a small tensor of integers"):
        file.ints(file.root["e"])


@pytest.mark.parametrize("where", ["in the tensor", "elsewhere in its storage"])
def test_a_small_tensor_of_integers_must_match_its_checksum(tmp_path: Path, where: str) -> None:
    """The ranks of a mesh decide which rows a rank holds: one other bit in them permutes the rows of every tensor."""
    ranks = torch.arange(8)
    file = saved(tmp_path, {"ranks": ranks[:4]})
    raw = bytearray(Path(file.path).read_bytes())
    raw[file.entries["0"].start + (8 if where == "in the tensor" else 40)] ^= 8
    Path(file.path).write_bytes(raw)
    file = open_torch_zip(file.path)
    with pytest.raises(CkptconvError, match="the ranks of a mesh do not match their checksum") as refused:
        file.ints(file.root["ranks"])
    assert file.path in str(refused.value.where)


def test_a_small_tensor_of_integers_may_be_saved_without_a_checksum(tmp_path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        file = saved(tmp_path, {"ranks": torch.arange(4)})
    finally:
        torch.serialization.set_crc32_options(True)
    assert file.ints(file.root["ranks"]) == [0, 1, 2, 3]


def test_a_tensor_of_integers_that_is_larger_than_its_storage_is_not_small(tmp_path: Path) -> None:
    file = saved(tmp_path, {"ranks": torch.zeros(1, dtype=torch.int64).expand(1 << 21)})
    with pytest.raises(CkptconvError, match="not a small tensor of integers"):
        file.ints(file.root["ranks"])


def test_unknown_objects_are_inert_beside_tensors(tmp_path: Path) -> None:
    content = {
        "path": PurePosixPath("a/b"),
        "error": ValueError("text"),
        "numpy": np.arange(3),
        "sparse": torch.eye(3).to_sparse(),
        "meta": torch.empty(3, device="meta"),
        "module": torch.nn.Linear(2, 2),
        "dtype": torch.bfloat16,
        "x": tensor("float32", 3),
    }
    file = saved(tmp_path, content)
    kinds = {name: value.kind for name, value in file.root.items() if isinstance(value, Inert)}
    assert set(content) - set(kinds) == {"dtype", "x"}
    assert kinds["module"] == "torch.nn.modules.linear.Linear"
    assert same_bits(file, "x", content["x"])


def test_storages_beyond_four_gigabytes_are_found(tmp_path: Path) -> None:
    """A sparse file: from there on a zip needs its 64-bit fields."""
    made = rebuilt(storage("1"), b"K\x02", numbers(2), numbers(1))
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("x/data.pkl", b"\x80\x02" + made + b".")
        archive.start_dir = 5 << 30
        archive.writestr("x/data/1", bytes(range(48)))
    file = open_torch_zip(str(tmp_path / "x.pt"))
    assert file.entries["1"].start > 5 << 30
    assert read_numpy(file.view(file.root)).tobytes() == bytes(range(8, 16))


@pytest.fixture
def without_crcs(tmp_path: Path) -> TorchZip:
    """A file under torch.serialization.set_crc32_options(False): zeros stand for all of them."""
    before = torch.serialization.get_crc32_options()
    torch.serialization.set_crc32_options(False)
    try:
        return saved(tmp_path, {"a": tensor("float32", 3)})
    finally:
        torch.serialization.set_crc32_options(before)


def test_a_file_saved_without_crcs_is_read(without_crcs: TorchZip) -> None:
    assert same_bits(without_crcs, "a", tensor("float32", 3))


def test_a_file_saved_without_crcs_is_not_called_damaged(without_crcs: TorchZip) -> None:
    assert [entry.name for entry in check_crcs(without_crcs.path) if entry.is_damaged] == []


def test_a_tensor_by_hand_is_read(tmp_path: Path) -> None:
    made = rebuilt(storage(), b"K\x02", numbers(2, 2), numbers(4, 1))
    file = open_torch_zip(str(torch_file(tmp_path / "x.pt", b"\x80\x02}" + text("x") + made + b"s.")))
    assert read_numpy(file.view(file.root["x"])).tobytes() == bytes([*range(8, 16), *range(24, 32)])
