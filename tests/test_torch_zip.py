"""Files of torch.save are read bit for bit without torch; damaged and hostile ones are refused, and nothing runs."""

from __future__ import annotations

import copyreg
import os
import pickle
import random
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import pytest
import torch

from ckptconv.backends.stand_ins import Inert, TensorRecord, safe_load, stand_in
from ckptconv.backends.torch_zip import TorchZip, check_crcs, open_torch_zip, torch_zip_at
from ckptconv.dtypes import itemsize, known
from ckptconv.errors import CkptconvError
from ckptconv.read import read_numpy, same_place
from ckptconv.view import View

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
AS_BYTES = pytest.mark.xfail(
    strict=True, reason="_rebuild_tensor_v3's dtype is not looked at: they are read as uint8"
)


def tensor(dtype: str, *shape: int) -> torch.Tensor:
    """Random bytes as a tensor of any dtype."""
    count = torch.Size(shape).numel() * getattr(torch, dtype).itemsize
    raw = torch.randint(
        0, 2 if dtype == "bool" else 256, (count,), generator=torch.Generator().manual_seed(1)
    )
    return raw.to(torch.uint8).view(getattr(torch, dtype)).reshape(shape)


def saved(folder: Path, content: Any) -> TorchZip:
    torch.save(content, folder / "saved.pt")
    return open_torch_zip(str(folder / "saved.pt"))


def view_of_root(file: TorchZip) -> View | None:
    """The tensor that a file is; None for anything else."""
    return file.view(file.root) if isinstance(file.root, TensorRecord) else None


def same_bits(file: TorchZip, name: str, wanted: torch.Tensor) -> bool:
    view = file.view(file.root[name])
    raw = wanted.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    alike = (view.shape, view.dtype) == (tuple(wanted.shape), str(wanted.dtype).removeprefix("torch."))
    return alike and read_numpy(view).tobytes() == raw


def refusal(path: Path) -> CkptconvError:
    """The error that opening a file gives: one sentence that names the file."""
    with pytest.raises(CkptconvError) as caught:
        open_torch_zip(str(path))
    assert "\n" not in caught.value.what
    assert str(path) in str(caught.value.where)
    return caught.value


# --- what torch.save writes


@pytest.mark.parametrize("dtype", [*DTYPES, *(pytest.param(dtype, marks=AS_BYTES) for dtype in NEWER)])
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


@pytest.mark.parametrize("dtype", ["complex128", pytest.param("float8_e4m3fnuz", marks=AS_BYTES)])
def test_a_dtype_that_is_not_known_is_refused(dtype: str, tmp_path: Path) -> None:
    assert not known(dtype)
    x = torch.zeros(3, dtype=getattr(torch, dtype))
    with pytest.raises(CkptconvError):
        view_of_root(saved(tmp_path, x))


@pytest.mark.xfail(
    strict=True, reason="the last argument of _rebuild_tensor_v2 ({'conj': True}) is not looked at"
)
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


# --- damaged and foreign files


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A small file of two storages."""
    path = tmp_path / "good.pt"
    torch.save({"a": tensor("float32", 3, 4), "b": tensor("bfloat16", 5)}, path)
    return path


def test_a_file_cut_anywhere_is_refused(good: Path) -> None:
    whole = good.read_bytes()
    for length in (*range(1, len(whole), 41), *range(len(whole) - 30, len(whole))):
        good.write_bytes(whole[:length])
        error = refusal(good)
        if length >= 4:
            assert "truncated or damaged" in error.what
            assert f"{length:,} bytes" in str(error.found)


def test_an_empty_file_is_called_empty(tmp_path: Path) -> None:
    (tmp_path / "x.pt").touch()
    assert refusal(tmp_path / "x.pt").what == "the file is empty"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refusal(tmp_path / "x.pt").what


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "x.pt").write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert refusal(tmp_path / "x.pt").what == "not a file that torch.save wrote"


def test_another_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/b.txt", "text")
    assert "without data.pkl" in refusal(tmp_path / "x.pt").what


def test_the_old_form_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    error = refusal(tmp_path / "x.pt")
    assert "before 1.6" in error.what
    assert "torch.save it again" in str(error.hint)


def test_the_oldest_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(b"text")
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    assert "before 1.6" in refusal(tmp_path / "x.pt").what


def rewritten(path: Path, change: Callable[[zipfile.ZipInfo, bytes], bytes]) -> Path:
    """The same entries; `change` may edit each one's record and returns its content."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w") as archive:
        for info, content in entries:
            fresh = zipfile.ZipInfo(info.filename)
            archive.writestr(fresh, change(fresh, content))
    return path


@pytest.mark.parametrize("which", ["data.pkl", "data/0", "version"])
def test_compressed_entries_are_refused(which: str, good: Path) -> None:
    def deflate(info: zipfile.ZipInfo, content: bytes) -> bytes:
        if info.filename.endswith(which):
            info.compress_type = zipfile.ZIP_DEFLATED
        return content

    error = refusal(rewritten(good, deflate))
    assert error.what == "a compressed entry is not a torch storage"
    assert which in str(error.where)


def test_a_big_endian_file_is_refused(good: Path) -> None:
    def swap(info: zipfile.ZipInfo, content: bytes) -> bytes:
        return b"big" if info.filename.endswith("/byteorder") else content

    assert "big-endian" in refusal(rewritten(good, swap)).what


def test_a_repacked_file_is_read(good: Path) -> None:
    wanted = {name: read_numpy(open_torch_zip(str(good)).view(t)) for name, t in torch_root(good).items()}
    rewritten(good, lambda _, content: content)
    file = open_torch_zip(str(good))
    assert all(np.array_equal(read_numpy(file.view(file.root[name])), x) for name, x in wanted.items())


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


def test_an_archive_inside_a_file_is_read_in_place(good: Path, tmp_path: Path) -> None:
    """DCP keeps one archive a tensor, one after another."""
    one, other = (
        good.read_bytes(),
        torch_file(tmp_path / "x.pt", b"\x80\x02" + rebuilt(storage(), b"K\x00", b")", b")") + b"."),
    )
    (tmp_path / "many").write_bytes(b"before" + one + other.read_bytes() + b"after")
    with open(tmp_path / "many", "rb") as many:
        first = torch_zip_at(str(tmp_path / "many"), many.fileno(), 6, len(one))
        second = torch_zip_at(str(tmp_path / "many"), many.fileno(), 6 + len(one), other.stat().st_size)
        with pytest.raises(CkptconvError):
            torch_zip_at(str(tmp_path / "many"), many.fileno(), 6, len(one) - 1)
        with pytest.raises(CkptconvError):
            torch_zip_at(str(tmp_path / "many"), many.fileno(), 7, len(one) - 1)
    assert same_bits(first, "a", tensor("float32", 3, 4))
    assert same_bits(first, "b", tensor("bfloat16", 5))
    assert read_numpy(second.view(second.root)).tobytes() == bytes(range(4))


def torch_root(path: Path) -> dict[str, TensorRecord]:
    root = open_torch_zip(str(path)).root
    assert isinstance(root, dict)
    return root


CRC, PACKED, UNPACKED, HEADER = 16, 20, 24, 42  # where the fields of a zip directory's entry are


def lie(path: Path, which: str, *changes: tuple[int, int]) -> Path:
    """Change fields of one entry of the zip's directory."""
    raw = bytearray(path.read_bytes())
    at = raw.index(b"PK\x01\x02")
    while not bytes(raw[at + 46 : at + 46 + struct.unpack_from("<H", raw, at + 28)[0]]).endswith(
        which.encode()
    ):
        at = raw.index(b"PK\x01\x02", at + 4)
    for field, value in changes:
        struct.pack_into("<I", raw, at + field, value)
    path.write_bytes(raw)
    return path


LIES: dict[str, tuple[str, tuple[tuple[int, int], ...], str]] = {
    "a storage longer than the file": (
        "data/1",
        ((PACKED, 1 << 30), (UNPACKED, 1 << 30)),
        "outside the file",
    ),
    "a storage over the next": ("data/0", ((PACKED, 400), (UNPACKED, 400)), "on another one"),
    "a header elsewhere": ("data/0", ((HEADER, 5),), "not where the directory says"),
    "a header past the end": ("data/1", ((HEADER, 1 << 30),), "not where the directory says"),
    "a pickle longer than the file": ("data.pkl", ((PACKED, 1 << 20), (UNPACKED, 1 << 20)), ""),
    "a pickle of two gigabytes": ("data.pkl", ((UNPACKED, 1 << 31),), "too large"),
    "a pickle with a wrong CRC": ("data.pkl", ((CRC, 1),), "damaged"),
}


@pytest.mark.parametrize("case", LIES)
def test_a_directory_that_lies_is_caught(case: str, good: Path) -> None:
    which, changes, text = LIES[case]
    assert text in refusal(lie(good, which, *changes)).what


@pytest.mark.xfail(strict=True, reason="an entry's own header may name another entry: its bytes are taken")
def test_a_storage_on_the_header_of_the_pickle_is_caught(good: Path) -> None:
    refusal(lie(good, "data/1", (HEADER, 0)))


def test_a_storage_shorter_than_its_tensor_is_caught(good: Path) -> None:
    file = open_torch_zip(str(lie(good, "data/0", (PACKED, 47), (UNPACKED, 47))))
    file.view(file.root["b"])
    with pytest.raises(CkptconvError, match="reaches outside its storage") as error:
        file.view(file.root["a"])
    assert (error.value.found, error.value.wanted) == ("byte 48", "at most 47")


def test_crcs_are_checked_on_demand(good: Path) -> None:
    assert [name for _, name in check_crcs(str(good)) if name] == []
    start = open_torch_zip(str(good)).entries["1"].start
    raw = bytearray(good.read_bytes())
    raw[start] ^= 1
    good.write_bytes(raw)
    open_torch_zip(str(good))
    found = list(check_crcs(str(good), block=7))
    assert [name for _, name in found if name] == ["good/data/1"]
    assert sum(size for size, _ in found) >= 48 + 10


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


@pytest.mark.xfail(strict=True, reason="check_crcs takes the zeros for CRCs")
def test_a_file_saved_without_crcs_is_not_called_damaged(without_crcs: TorchZip) -> None:
    assert [name for _, name in check_crcs(without_crcs.path) if name] == []


def test_random_damage_is_refused_or_harmless(good: Path) -> None:
    raw, choose = good.read_bytes(), random.Random(1)
    for _ in range(300):
        damaged = bytearray(raw)
        for _ in range(choose.choice((1, 2, 8))):
            damaged[choose.randrange(choose.choice((0, len(raw) - 700)), len(raw))] = choose.choice(
                (0, 255, 77)
            )
        good.write_bytes(damaged)
        with suppress(CkptconvError):
            file = open_torch_zip(str(good))
            for value in file.root.values() if isinstance(file.root, dict) else ():
                if isinstance(value, TensorRecord):
                    file.view(value)


# --- pickles by hand


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def call(function: bytes, *args: bytes) -> bytes:
    return function + b"(" + b"".join(args) + b"tR"


def storage(key: str = "0", kind: str = "FloatStorage", numel: bytes = b"K\x0c") -> bytes:
    return b"(" + text("storage") + name("torch", kind) + text(key) + text("cpu") + numel + b"tQ"


def rebuilt(*args: bytes) -> bytes:
    return call(name("torch._utils", "_rebuild_tensor_v2"), *args)


def numbers(*values: int) -> bytes:
    return pickle.dumps(values, 2)[2:-1]


def torch_file(path: Path, pickled: bytes) -> Path:
    """A .pt with this pickle and one storage of 48 bytes."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x/data.pkl", pickled)
        archive.writestr("x/data/0", bytes(range(48)))
    return path


def test_a_tensor_by_hand_is_read(tmp_path: Path) -> None:
    made = rebuilt(storage(), b"K\x02", numbers(2, 2), numbers(4, 1))
    file = open_torch_zip(str(torch_file(tmp_path / "x.pt", b"\x80\x02}" + text("x") + made + b"s.")))
    assert read_numpy(file.view(file.root["x"])).tobytes() == bytes([*range(8, 16), *range(24, 32)])


OUTSIDE: dict[str, tuple[bytes, str]] = {
    "one element too many": (rebuilt(storage(), b"K\x01", numbers(12), numbers(1)), "reaches outside"),
    "a wide stride": (rebuilt(storage(), b"K\x00", numbers(2, 2), numbers(11, 1)), "reaches outside"),
    "a far offset": (
        rebuilt(storage(), b"\x8a\x08" + b"\x7f" * 8, numbers(1), numbers(1)),
        "reaches outside",
    ),
    "a scalar past the end": (rebuilt(storage(), b"K\x0c", b")", b")"), "reaches outside"),
    "a wider dtype": (
        rebuilt(storage(kind="DoubleStorage"), b"K\x00", numbers(12), numbers(1)),
        "reaches outside",
    ),
    "a storage that is not there": (
        rebuilt(storage("../1"), b"K\x00", numbers(1), numbers(1)),
        "not in the file",
    ),
}


@pytest.mark.parametrize("case", OUTSIDE)
def test_a_tensor_outside_its_storage_is_refused(case: str, tmp_path: Path) -> None:
    made, words = OUTSIDE[case]
    file = open_torch_zip(str(torch_file(tmp_path / "x.pt", b"\x80\x02" + made + b".")))
    with pytest.raises(CkptconvError, match=words):
        file.view(file.root)


@pytest.mark.xfail(strict=True, reason="TorchZip.view zips sizes and strides strictly: a bare ValueError")
def test_a_tensor_with_more_sizes_than_strides_is_refused(tmp_path: Path) -> None:
    made = rebuilt(storage(), b"K\x00", numbers(2, 3), numbers(1))
    path = torch_file(tmp_path / "x.pt", b"\x80\x02" + made + b".")
    with pytest.raises(CkptconvError):
        view_of_root(open_torch_zip(str(path)))


REBUILD, FROM_TYPE = (
    name("torch._utils", "_rebuild_tensor_v2"),
    name("torch._tensor", "_rebuild_from_type_v2"),
)
STATE = b"}" + text("kind") + text("DTensor") + b"s"
MALFORMED: dict[str, bytes] = {
    "persistent id: None": b"NQ",
    "persistent id: text": text("storage") + b"Q",
    "persistent id: protocol 0": b"Pstorage\n",
    "persistent id: too short": b"(" + text("storage") + name("torch", "FloatStorage") + text("0") + b"tQ",
    "persistent id: another kind": storage().replace(b"storage(", b"module(").replace(text("storage"), text("x")),
    "persistent id: no dtype": storage(kind="Tensor"),
    "persistent id: a negative count": storage(numel=b"J\xff\xff\xff\xff"),
    "persistent id: a count that is true": storage(numel=b"\x88"),
    "persistent id: a key that is a number": storage().replace(text("0"), b"K\x00"),
    "tensor: no storage": rebuilt(text("storage"), b"K\x00", numbers(1), numbers(1)),
    "tensor: a negative size": rebuilt(storage(), b"K\x00", numbers(-1), numbers(1)),
    "tensor: a negative stride": rebuilt(storage(), b"K\x00", numbers(2), numbers(-1)),
    "tensor: a negative offset": rebuilt(storage(), b"J\xff\xff\xff\xff", numbers(2), numbers(1)),
    "tensor: a size that is true": rebuilt(storage(), b"K\x00", b"\x88\x85", numbers(1)),
    "tensor: a size of 2.5": rebuilt(storage(), b"K\x00", b"G@\x04\x00\x00\x00\x00\x00\x00\x85", numbers(1)),
    "tensor: no shape": rebuilt(storage(), b"K\x00", b"N", numbers(1)),
    "tensor: too few arguments": rebuilt(storage()),
    "build on a function": REBUILD + b"}" + text("_function") + b"Nsb",
    "build with slots on a function": REBUILD + b"N}" + text("_function") + b"Ns\x86b",
    "build on a class": name("torch", "Tensor") + STATE + b"b",
    "build on an unknown class": name("some.where", "Thing") + STATE + b"b",
    "build with slots on a class": name("torch", "Tensor") + b"N" + STATE + b"\x86b",
    "build on the dict class": name("collections", "OrderedDict") + STATE + b"b",
    "build on a dtype": name("torch", "float32") + b"}" + text("name") + text("int8") + b"sb",
    "build with slots on a dtype": name("torch", "float32") + b"N}" + text("name") + text("int8") + b"s\x86b",
    "build on a storage": storage() + b"N}" + text("key") + text("1") + b"s\x86b",
    "build on a tensor": rebuilt(storage(), b"K\x00", numbers(1), numbers(1)) + STATE + b"b",
    "setitem on a class": name("torch", "Tensor") + text("kind") + text("DTensor") + b"s",
    "setitem on a function": REBUILD + text("_function") + b"Ns",
    "append to a function": REBUILD + b"Na",
    "a call of a dtype": call(name("torch", "float32"), text("x")),
    "a call of a text": text("print") + b")R",
    "a new object of a function": REBUILD + b")\x81",
    "a new object of a text": text("print") + b")\x81",
    "a call of itself with itself": b"]q\x00(" + FROM_TYPE + b"Nh\x00Ne" + call(FROM_TYPE, FROM_TYPE, b"Nh\x00N"),
    "memo: never written": b"h\x07",
    "memo: never written, long": b"j\x07\x00\x00\x00",
    "memo: a negative number": b"g-1\n",
    "memo: a negative place": b"Np-1\n",
    "memo: no number": b"gx\n",
    "stack: nothing": b"",
    "stack: no mark": b"t",
    "stack: pop of nothing": b"00",
    "protocol 5: a buffer that is elsewhere": b"\x97",
    "protocol 5: a buffer made read-only": b"\x97\x98",
    "protocol 4: a frame longer than the file": b"\x95\xff\xff\x00\x00\x00\x00\x00\x00N",
    "protocol 4: a name that is no text": b"K\x01K\x02\x93",
    "protocol 255": b"\x80\xff",
    "an unknown opcode": b"\xff",
    "an extension that nobody registered": b"\x82\xf0",
    "an extension number below one": b"\x84\x00\x00\x00\x00",
    "a key that cannot be one": b"}]Ns",
    "text that is no text": b"X\x02\x00\x00\x00\xff\xfe",
}  # fmt: skip


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_pickle_is_refused(case: str, tmp_path: Path) -> None:
    refusal(torch_file(tmp_path / "x.pt", b"\x80\x02" + MALFORMED[case] + b"."))
    assert_unharmed(tmp_path)


def test_a_pickle_without_an_end_is_refused(tmp_path: Path) -> None:
    refusal(torch_file(tmp_path / "x.pt", b"\x80\x02N"))
    refusal(torch_file(tmp_path / "x.pt", b""))


HUGE = {
    "bytes of four exabytes": b"\x8e" + struct.pack("<Q", 1 << 62),
    "bytes of a terabyte": b"\x8e" + struct.pack("<Q", 1 << 40),
    "bytes of four gigabytes": b"B\xff\xff\xff\xff",
    "text of a terabyte": b"\x8d" + struct.pack("<Q", 1 << 40),
    "a bytearray of a terabyte": b"\x96" + struct.pack("<Q", 1 << 40),
    "a number of two gigabytes": b"\x8b\xff\xff\xff\x7f",
    "a place in the memo": b"Nr\xff\xff\xff\xff",
    "a place in the memo, as text": b"Np99999999999\n",
}


def test_huge_sizes_are_refused_within_two_gigabytes() -> None:
    """In a process of its own, whose address space is bounded: what is refused must not be allocated."""
    code = (
        "import ast, resource, sys\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 30, 2 << 30))\n"
        "from ckptconv.backends.stand_ins import safe_load\n"
        "from ckptconv.errors import CkptconvError\n"
        "for case in ast.literal_eval(sys.argv[1]):\n"
        "    try:\n"
        "        safe_load(case, 'x')\n"
        "        print('loaded')\n"
        "    except CkptconvError as error:\n"
        "        print('refused')\n"
    )
    cases = [b"\x80\x05" + case + b"." for case in HUGE.values()]
    done = subprocess.run([sys.executable, "-c", code, repr(cases)], capture_output=True, text=True)
    assert done.stdout.split() == ["refused"] * len(HUGE), done.stderr


STRANGE: dict[str, bytes] = {
    "lists, a hundred thousand deep": b"]" * 100_000 + b"a" * 99_999,
    "tuples, a hundred thousand deep": b"(" * 100_000 + b"t" * 100_000,
    "a list in itself": b"]q\x00h\x00a",
    "a dict in itself": b"}q\x00" + text("x") + b"h\x00s",
    "a bytearray": b"\x96" + struct.pack("<Q", 3) + b"abc",
    "bytes": b"\x8e" + struct.pack("<Q", 3) + b"abc",
    "sets": b"\x8f(K\x01K\x02\x90(K\x01\x91\x86",
    "a long number": b"\x8b" + struct.pack("<i", 5000) + b"\x01" * 5000,
    "a class that is nowhere": call(name("no.such.module", "Thing.inner"), b"N") + b"}b",
    "a class with slots": name("a", "B") + b")\x81N}" + text("__class__") + b"Ns\x86b",
    "a class with keywords": name("a", "B") + b")}" + text("x") + b"Ns\x92",
    "a state that replaces its own loader": name("a", "B")
    + b")\x81}"
    + text("__setstate__")
    + REBUILD
    + b"sb}b",
    "a dict with attributes": name("collections", "OrderedDict") + b")R}" + text("update") + b"Nsb",
    "an attribute of a function": call(name("builtins", "getattr"), REBUILD, text("__globals__")),
    "an attribute of a class": call(name("builtins", "getattr"), name("a", "B"), text("__subclasses__"))
    + b")R",
    "a name with a newline": text("a\nb") + text("c\0d") + b"\x93",
    "a very long name": text("a." * 5000) + text("b" * 5000) + b"\x93",
    "a module that does something when imported": name("this", "s") + name("antigravity", "fly") + b"\x86",
}


@pytest.mark.parametrize("case", STRANGE)
def test_a_strange_pickle_is_inert(case: str, tmp_path: Path) -> None:
    path = torch_file(tmp_path / "x.pt", b"\x80\x05" + STRANGE[case] + b".")
    before = set(sys.modules)
    open_torch_zip(str(path))
    assert set(sys.modules) == before
    assert_unharmed(tmp_path)


@pytest.mark.xfail(
    strict=True, reason="_member writes out its arguments: 2^n texts of a list that holds itself twice"
)
def test_an_error_text_does_not_unfold_what_a_pickle_folded() -> None:
    """A list of two lists of two lists ...: 100 bytes of pickle, and 2^18 of them when it is written out."""
    folded = b"]q\x00" + b"".join(b"0](h%ch%ceq%c" % (i, i, i + 1) for i in range(18))
    made = safe_load(b"\x80\x02" + call(name("builtins", "getattr"), folded, text("x")) + b".", "x")
    assert len(made.kind) < 1000


# --- pickles that run code


class Bomb:
    """What a pickle can do: a call of any function with any arguments."""

    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def partial(path: str) -> bytes:
    """functools.partial(print), whose state then says: os.mkdir(path)."""
    state = b"(" + name("os", "mkdir") + text(path) + b"\x85}NtR".replace(b"R", b"b")
    return call(name("functools", "partial"), name("builtins", "print")) + state + b")R"


IMPORT_OS = call(name("builtins", "__import__"), text("os"))
BOMBS: dict[str, Callable[[str], bytes]] = {
    **{f"reduce, protocol {n}": lambda path, n=n: pickle.dumps(Bomb(path), n)[:-1] for n in range(6)},
    "os.system": lambda path: call(name("os", "system"), text(f"mkdir {path}")),
    "subprocess": lambda path: call(name("subprocess", "check_call"), b"](" + text("mkdir") + text(path) + b"e"),
    "a nested name": lambda path: b"\x80\x04" + text("os") + text("path.os.mkdir") + b"\x93" + text(path) + b"\x85R",
    "eval": lambda path: call(name("builtins", "eval"), text(f"__import__('os').mkdir({path!r})")),
    "eval of Python 2": lambda path: call(name("__builtin__", "eval"), text(f"__import__('os').mkdir({path!r})")),
    "exec": lambda path: call(name("builtins", "exec"), text(f"import os; os.mkdir({path!r})")),
    "a chain of getattr": lambda path: call(
        call(name("builtins", "getattr"), IMPORT_OS, text("mkdir")), text(path)
    ),
    "an attrgetter": lambda path: call(
        call(call(name("operator", "attrgetter"), text("mkdir")), IMPORT_OS), text(path)
    ),
    "an instance": lambda path: b"(" + text(path) + b"ios\nmkdir\n",
    "an object": lambda path: b"(" + name("os", "mkdir") + text(path) + b"o",
    "a partial's state": partial,
    "map": lambda path: call(
        name("builtins", "list"), call(name("builtins", "map"), name("os", "mkdir"), text(path) + b"\x85")
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", BOMBS)
def test_a_pickle_that_would_run_code_runs_nothing(case: str, tmp_path: Path) -> None:
    canary = tmp_path / "canary"
    bomb = BOMBS[case](str(canary))
    pickle.loads(bomb + b".")
    assert canary.is_dir(), "the attack itself is broken"
    canary.rmdir()
    for pickled in (bomb, b"}" + text("x") + bomb + b"s", storage()[:-2] + bomb + b"tQ"):
        before = set(sys.modules)
        with suppress(CkptconvError):
            open_torch_zip(str(torch_file(tmp_path / "x.pt", pickled + b".")))
        assert not canary.exists()
        assert set(sys.modules) == before
    assert_unharmed(tmp_path)


@pytest.mark.parametrize(
    "attack",
    [
        name("os", "environ") + text("CKPTCONV_CANARY") + text("1") + b"s",
        name("sys", "path") + text("CKPTCONV_CANARY") + b"a",
        name("sys", "modules") + text("CKPTCONV_CANARY") + b"Ns",
        name("builtins", "__dict__") + text("CKPTCONV_CANARY") + b"Ns",
    ],
    ids=["environment", "import path", "modules", "builtins"],
)
def test_a_pickle_that_would_change_this_process_changes_nothing(attack: bytes, tmp_path: Path) -> None:
    with suppress(CkptconvError):
        open_torch_zip(str(torch_file(tmp_path / "x.pt", attack + b".")))
    assert "CKPTCONV_CANARY" not in os.environ
    assert "CKPTCONV_CANARY" not in sys.path
    assert "CKPTCONV_CANARY" not in sys.modules
    assert_unharmed(tmp_path)


@pytest.fixture
def extension() -> Iterator[bytes]:
    """os.mkdir as copyreg's extension 240, for as long as a test runs."""
    copyreg.add_extension("os", "mkdir", 240)
    yield b"\x82\xf0"
    copyreg.remove_extension("os", "mkdir", 240)
    copyreg.clear_extension_cache()


def test_an_extension_is_inert(extension: bytes, tmp_path: Path) -> None:
    bomb = b"\x80\x02" + call(extension, text(str(tmp_path / "canary"))) + b"."
    assert open_torch_zip(str(torch_file(tmp_path / "x.pt", bomb))).root.kind == "os.mkdir"
    assert not (tmp_path / "canary").exists()


@pytest.mark.xfail(strict=True, reason="the C unpickler takes cached extensions without asking find_class")
def test_an_extension_that_the_process_has_used_is_inert(extension: bytes, tmp_path: Path) -> None:
    assert pickle.loads(b"\x80\x02" + extension + b".") is os.mkdir
    bomb = b"\x80\x02" + call(extension, text(str(tmp_path / "canary"))) + b"."
    with suppress(CkptconvError):
        open_torch_zip(str(torch_file(tmp_path / "x.pt", bomb)))
    assert not (tmp_path / "canary").exists()


@pytest.mark.xfail(strict=True, reason="what find_class returns for an extension stays in copyreg's cache")
def test_a_stand_in_does_not_leak_into_other_unpicklers(extension: bytes) -> None:
    safe_load(b"\x80\x02" + extension + b".", "x")
    assert pickle.loads(b"\x80\x02" + extension + b".") is os.mkdir


def assert_unharmed(folder: Path) -> None:
    """The stand-ins are what they were: a good file is still read, and classes have their own kinds."""
    assert stand_in("torch", "Tensor").kind == "Tensor"
    assert stand_in("some.where", "Thing").kind == "some.where.Thing"
    assert itemsize(stand_in("torch", "float32").name) == 4
    x = tensor("float32", 3, 2)
    assert same_bits(saved(folder, {"x": x.t()}), "x", x.t())
