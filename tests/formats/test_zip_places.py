"""Where an entry's bytes begin is computed from the central directory, and checked when they are read."""

from __future__ import annotations

import os
import pickle
import struct
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.helpers import cli
from torch.serialization import skip_data

from ckptconv.commands.inspect import inspect
from ckptconv.errors import CkptconvError
from ckptconv.formats import zip_directory
from ckptconv.formats.torch_zip import TorchZip, open_torch_zip
from ckptconv.formats.zip_directory import Window, data_start, read_directory
from ckptconv.formats.zip_forms import Forms
from ckptconv.formats.zip_places import ZipFile, computed_start
from ckptconv.read.reader import read_numpy
from ckptconv.tensors.look import opened

HEADER = 42  # where the offset of the local header is in a directory's entry


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Two tensors of equal size, so that a directory that swaps them has no sign of it."""
    path = tmp_path / "x.pt"
    torch.save({"a": torch.arange(12.0), "b": -torch.arange(12.0)}, path)
    return path


def entry_of(raw: bytes, name: bytes) -> int:
    """The offset of an entry in the central directory."""
    at = raw.index(b"PK\x01\x02")
    while not raw[at + 46 : at + 46 + struct.unpack_from("<H", raw, at + 28)[0]].endswith(name):
        at = raw.index(b"PK\x01\x02", at + 4)
    return at


def read(file: TorchZip, key: str) -> bytes:
    return read_numpy(file.view(file.root[key])).tobytes()


def test_the_computed_place_is_the_headers_for_every_kind_of_entry(tmp_path: Path) -> None:
    """Empty, odd, beyond 4 GiB, and larger than 4 GiB; the weights are holes."""
    sizes = (10, 0, 7, 5 << 30, 3, 0xFFFFFFFF, 1, 1 << 20)
    path = tmp_path / "x.pt"
    with skip_data():
        torch.save([torch.empty(size, dtype=torch.uint8) for size in sizes], path)
    with opened(path) as file:
        window = Window(str(path), file, 0, file.nbytes)
        entries, begin = read_directory(window)
        entries.sort(key=lambda entry: entry.header)
        ends = [*(entry.header for entry in entries[1:]), begin]
        found = [computed_start(entry, end) for entry, end in zip(entries, ends, strict=True)]
        assert found == [data_start(window, entry) for entry in entries]


def test_no_local_header_is_read_before_the_bytes(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def spy(window: Window, entry: zip_directory.ZipEntry) -> int:
        asked.append(entry.name)
        return data_start(window, entry)

    monkeypatch.setattr("ckptconv.formats.zip_forms.data_start", spy)
    file = open_torch_zip(str(saved))
    assert not any("/data/" in name for name in asked)
    assert read(file, "a") == torch.arange(12.0).numpy().tobytes()


def damaged(saved: Path, change: Callable[[bytearray], None]) -> TorchZip:
    """The file after a change that opening it does not show."""
    raw = bytearray(saved.read_bytes())
    change(raw)
    saved.write_bytes(raw)
    return open_torch_zip(str(saved))


def swap_names(raw: bytearray) -> None:
    """The directory says that each of the two storages is the other one."""
    one, two = entry_of(raw, b"data/0"), entry_of(raw, b"data/1")
    raw[one + HEADER : one + HEADER + 4], raw[two + HEADER : two + HEADER + 4] = (
        raw[two + HEADER : two + HEADER + 4],
        raw[one + HEADER : one + HEADER + 4],
    )


def header_of(raw: bytearray, name: bytes) -> int:
    return int(struct.unpack_from("<I", raw, entry_of(raw, name) + HEADER)[0])


def erase_header(raw: bytearray) -> None:
    at = header_of(raw, b"data/0")
    raw[at : at + 4] = bytes(4)


def another_padding(raw: bytearray) -> None:
    """The local header says that it is 8 bytes longer than torch would make it."""
    at = header_of(raw, b"data/0") + 28
    struct.pack_into("<H", raw, at, struct.unpack_from("<H", raw, at)[0] + 8)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (swap_names, "a zip entry's header belongs to another entry"),
        (erase_header, "an entry's header is not where the directory says"),
        (another_padding, "header and the central directory disagree on where its bytes begin"),
    ],
)
def test_a_header_that_disagrees_is_refused_at_the_read(
    saved: Path, change: Callable[[bytearray], None], says: str
) -> None:
    file = damaged(saved, change)
    with pytest.raises(CkptconvError, match=says) as refused:
        read(file, "a")
    assert str(saved) in str(refused.value.where)


def test_a_merge_of_such_a_file_publishes_nothing(saved: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "not-known", "architectures": ["NoSuchModel"]}')
    saved.rename(folder / "pytorch_model.bin")
    assert cli("merge", str(folder), str(tmp_path / "whole")).code == 0
    damaged(folder / "pytorch_model.bin", swap_names)
    ran = cli("merge", str(folder), str(tmp_path / "out"))
    assert ran.code == 2
    assert "belongs to another entry" in ran.err
    assert "pytorch_model.bin" in ran.err
    assert not (tmp_path / "out").exists()


def aligned(path: Path, alignment: int) -> dict[str, torch.Tensor]:
    """Save tensors with storage_alignment of torch.utils.serialization.config; empty ones and odd sizes are among them."""
    from torch.utils.serialization import config

    tensors = {str(size): torch.arange(size, dtype=torch.uint8) for size in range(0, 200, 7)}
    with config.patch("save.storage_alignment", alignment):
        torch.save(tensors, path)
    return tensors


@pytest.mark.parametrize("alignment", [1, 2, 16, 48, 64, 128, 4096, 1 << 16])
def test_places_follow_from_the_alignment_that_the_file_records(
    tmp_path: Path, alignment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = aligned(tmp_path / "x.pt", alignment)

    def refused(window: Window, entry: zip_directory.ZipEntry) -> int:
        raise AssertionError(entry.name)

    monkeypatch.setattr("ckptconv.formats.zip_forms.data_start", refused)
    file = open_torch_zip(str(tmp_path / "x.pt"))
    assert all(entry.start % alignment == 0 for entry in file.entries.values())
    for name, tensor in tensors.items():
        assert read(file, name) == tensor.numpy().tobytes()
    assert isinstance(file.path, ZipFile)


@pytest.mark.parametrize("alignment", [1, 64, 4096])
def test_a_file_is_opened_in_a_few_reads_with_any_alignment(
    tmp_path: Path, alignment: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    def counted(handle: int, nbytes: int, offset: int) -> bytes:
        reads.append(offset)
        return pread(handle, nbytes, offset)

    from torch.utils.serialization import config

    with config.patch("save.storage_alignment", alignment):
        torch.save([torch.ones(40) for _ in range(300)], tmp_path / "x.pt")
    pread = os.pread
    monkeypatch.setattr(os, "pread", counted)
    assert len(open_torch_zip(str(tmp_path / "x.pt")).entries) == 300
    assert 0 < len(reads) <= 4


@pytest.mark.parametrize("stated", [b"4095", b"0000", b"-096", b"none", "٤٠".encode()])
def test_places_are_read_from_the_headers_where_the_alignment_is_another(
    tmp_path: Path, stated: bytes
) -> None:
    tensors = aligned(tmp_path / "x.pt", 4096)
    raw = bytearray((tmp_path / "x.pt").read_bytes())
    assert raw.count(b"4096") == 1
    (tmp_path / "x.pt").write_bytes(raw.replace(b"4096", stated))
    file = open_torch_zip(str(tmp_path / "x.pt"))
    for name, tensor in tensors.items():
        assert read(file, name) == tensor.numpy().tobytes()
    assert not isinstance(file.path, ZipFile)


def test_checking_an_entry_takes_the_same_time_in_a_file_of_many(tmp_path: Path) -> None:
    """Each check split the names of all entries: 47 s for 40,000 tensors."""
    times = []
    for count in (1_000, 16_000):
        torch.save([torch.ones(1) for _ in range(count)], tmp_path / "x.pt")
        file = open_torch_zip(str(tmp_path / "x.pt"))
        assert isinstance(file.path, ZipFile)
        some = [*file.entries.values()][:: count // 500]
        begun = time.process_time()
        with opened(file.path) as handle:
            for entry in some:
                file.path.check(handle, entry.start)
        times.append(time.process_time() - begun)
    assert times[1] < 5 * times[0] + 0.1


def test_a_pickled_path_still_checks(saved: Path) -> None:
    """A Ray task gets the plan pickled."""
    path = pickle.loads(pickle.dumps(damaged(saved, erase_header).path))
    assert path == str(saved)
    start = open_torch_zip(str(saved)).entries["0"].start
    with opened(saved) as file, pytest.raises(CkptconvError, match="not where the directory says"):
        path.check(file, start)


def test_inspect_reads_a_rank_file_a_few_times(
    made: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """At any number of tensors: this one has far more than eight. Only the first file's mesh and version are read."""
    counts: Counter[str] = Counter()

    def counted(handle: int, nbytes: int, offset: int) -> bytes:
        counts[os.readlink(f"/proc/self/fd/{handle}")] += 1
        return pread(handle, nbytes, offset)

    pread = os.pread
    monkeypatch.setattr(os, "pread", counted)
    found = inspect(made("fsdp2_w4"))
    ranks = {path: count for path, count in counts.items() if path.endswith(".pt")}
    assert len(ranks) == found.world_size == 4
    first, *others = (ranks[path] for path in sorted(ranks))
    assert first <= 8 < found.tensors
    assert max(others) <= 5


def saved_as(path: Path, *tensors: torch.Tensor) -> Path:
    torch.save({str(number): tensor for number, tensor in enumerate(tensors)}, path)
    return path


def test_files_that_differ_in_bytes_alone_share_a_form(tmp_path: Path) -> None:
    forms = Forms()
    one, two = (saved_as(tmp_path / f"rank_{n}.pt", torch.arange(9.0) + n, torch.ones(3) * n) for n in (1, 2))
    files = [open_torch_zip(str(path), forms=forms) for path in (one, two)]
    assert files[0].form is files[1].form
    assert [file.entries for file in files] == [open_torch_zip(str(path)).entries for path in (one, two)]
    assert read(files[1], "0") == (torch.arange(9.0) + 2).numpy().tobytes()
    assert isinstance(files[1].path, ZipFile)  # and its header, under its own name, was checked


@pytest.mark.parametrize(
    ("name", "tensors"),
    [
        ("rank_2", (torch.arange(9.0), torch.ones(4))),
        ("rank_2", (torch.arange(9.0),)),
        ("rank_2", (torch.ones(3), torch.arange(9.0))),
        ("longer_2", (torch.arange(9.0), torch.ones(3))),
    ],
)
def test_another_form_is_read_for_itself(
    tmp_path: Path, name: str, tensors: tuple[torch.Tensor, ...]
) -> None:
    forms = Forms()
    first = open_torch_zip(
        str(saved_as(tmp_path / "rank_1.pt", torch.arange(9.0), torch.ones(3))), forms=forms
    )
    other = open_torch_zip(str(saved_as(tmp_path / f"{name}.pt", *tensors)), forms=forms)
    assert other.form is not first.form
    for key, tensor in enumerate(tensors):
        assert read(other, str(key)) == tensor.numpy().tobytes()


def test_a_like_file_with_a_damaged_directory_is_refused_like_any(tmp_path: Path) -> None:
    """Every bit of the directory is compared, or read: none is taken from the file before."""
    good = saved_as(tmp_path / "rank_1.pt", torch.arange(9.0), torch.ones(3)).read_bytes()
    begin = good.index(b"PK\x01\x02")
    for at in range(begin, len(good), 3):
        damaged = bytearray(good)
        damaged[at] ^= 4
        (tmp_path / "rank_2.pt").write_bytes(damaged)
        forms, found = Forms(), []
        open_torch_zip(str(tmp_path / "rank_1.pt"), forms=forms)
        for known in (forms, None):
            try:
                found.append(open_torch_zip(str(tmp_path / "rank_2.pt"), forms=known).entries)
            except CkptconvError as error:
                found.append({error.what: None})  # type: ignore[dict-item]
        assert found[0] == found[1], at
