"""Damaged and foreign .pt files are refused in one sentence that names the file."""

from __future__ import annotations

import gzip
import random
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from support.torch_files import (
    rebuilt,
    refusal,
    same_bits,
    storage,
    tensor,
    torch_file,
)

from ckptconv.errors import CkptconvError
from ckptconv.formats.crcs import check_crcs
from ckptconv.formats.stand_ins import TensorRecord
from ckptconv.formats.torch_zip import open_torch_zip, torch_zip_at
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.look import opened


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
    (tmp_path / "x.pt").write_bytes(b"some text\n")
    assert refusal(tmp_path / "x.pt").what == "not a torch.save file"
    assert refusal(tmp_path / "x.pt").hint is None


def test_a_pointer_and_a_compressed_file_are_refused_with_a_way_out(good: Path) -> None:
    good.write_bytes(gzip.compress(good.read_bytes()))
    assert "gunzip" in str(refusal(good).hint)
    good.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in str(refusal(good).hint)


def test_another_zip_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.pt", "w") as archive:
        archive.writestr("a/b.txt", "text")
    assert "has no data.pkl" in refusal(tmp_path / "x.pt").what


def test_the_old_form_is_refused_with_a_way_out(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(3)}, tmp_path / "x.pt", _use_new_zipfile_serialization=False)
    error = refusal(tmp_path / "x.pt")
    assert "pre-1.6" in error.what
    assert "torch.save it again" in str(error.hint)


def test_the_oldest_form_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pickle").write_bytes(b"text")
    with tarfile.open(tmp_path / "x.pt", "w") as archive:
        archive.add(tmp_path / "pickle", "pickle")
    assert "pre-1.6" in refusal(tmp_path / "x.pt").what


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


def test_an_archive_inside_a_file_is_read_in_place(good: Path, tmp_path: Path) -> None:
    """DCP keeps one archive a tensor, one after another."""
    one, other = (
        good.read_bytes(),
        torch_file(tmp_path / "x.pt", b"\x80\x02" + rebuilt(storage(), b"K\x00", b")", b")") + b"."),
    )
    (tmp_path / "many").write_bytes(b"before" + one + other.read_bytes() + b"after")
    with opened(tmp_path / "many") as many:
        first = torch_zip_at(str(tmp_path / "many"), many, 6, len(one))
        second = torch_zip_at(str(tmp_path / "many"), many, 6 + len(one), other.stat().st_size)
        with pytest.raises(CkptconvError, match="the file is truncated or damaged"):
            torch_zip_at(str(tmp_path / "many"), many, 6, len(one) - 1)
        with pytest.raises(CkptconvError, match=r"not a torch\.save file"):
            torch_zip_at(str(tmp_path / "many"), many, 7, len(one) - 1)
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
    "a storage over the next": ("data/0", ((PACKED, 400), (UNPACKED, 400)), "overlap"),
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


def test_a_storage_on_the_header_of_the_pickle_is_caught(good: Path) -> None:
    refusal(lie(good, "data/1", (HEADER, 0)))


def test_two_entries_of_one_name_are_refused(good: Path) -> None:
    """One reader takes the first of them, another the last."""
    for which in ("data.pkl", "data/0"):
        with zipfile.ZipFile(good) as archive:
            entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
        twin = good.with_name("twin.pt")
        with zipfile.ZipFile(twin, "w") as archive, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, content in [*entries, *(entry for entry in entries if entry[0].endswith(which))]:
                archive.writestr(name, content)
        assert refusal(twin).what == "two entries of a torch file have one name"


def test_a_directory_that_has_the_same_bytes_again_and_again_is_not_read_that_often(tmp_path: Path) -> None:
    """A zip bomb without compression: a thousand entries on one megabyte, which a check of checksums would all read."""
    path, size, count = tmp_path / "bomb.pt", 1 << 20, 1_000
    body = b"PK\x03\x04" + bytes(22) + struct.pack("<HH", 3, 0) + b"x/y" + bytes(size)
    entry = struct.pack("<4s6H3L5H2L", b"PK\x01\x02", *(0,) * 6, 0, size, size, 3, *(0,) * 4, 0, 0) + b"x/y"
    ends = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(entry) * count, len(body), 0)
    path.write_bytes(body + entry * count + ends)
    checking = check_crcs(str(path))
    assert next(checking).nbytes == size
    with pytest.raises(CkptconvError, match="overlap"):
        next(checking)


def test_a_storage_shorter_than_its_tensor_is_caught(good: Path) -> None:
    file = open_torch_zip(str(lie(good, "data/0", (PACKED, 47), (UNPACKED, 47))))
    file.view(file.root["b"])
    with pytest.raises(CkptconvError, match="reaches outside its storage") as error:
        file.view(file.root["a"])
    assert (error.value.found, error.value.wanted) == ("byte 48", "at most 47")


def test_crcs_are_checked_on_demand(good: Path) -> None:
    assert [entry.name for entry in check_crcs(str(good)) if entry.is_damaged] == []
    start = open_torch_zip(str(good)).entries["1"].start
    raw = bytearray(good.read_bytes())
    raw[start] ^= 1
    good.write_bytes(raw)
    open_torch_zip(str(good))
    found = list(check_crcs(str(good), block=7))
    assert [entry.name for entry in found if entry.is_damaged] == ["good/data/1"]
    assert sum(entry.nbytes for entry in found) >= 48 + 10


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
