"""One pickle is read for many ranks: what comes out is what each rank's own says."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import FIXTURES, ROLE

from ckptconv.backends import open_checkpoint
from ckptconv.backends.fsdp import pieces as fsdp_pieces
from ckptconv.backends.fsdp import shared_pickles as rank_pickles
from ckptconv.backends.fsdp.shared_pickles import RankPickles, remembering
from ckptconv.formats.unpickle import safe_load

Made = Callable[[str], Path]
OLD = sorted(folder for folder in FIXTURES.glob("torch_*/*_w*") if any(folder.glob("model_world_size_*.pt")))


class EachAlone:
    """RankPickles that shares nothing."""

    def load(self, data: bytes, where: str) -> Any:
        return safe_load(data, where)


def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What safe_load is asked to load from now on."""
    asked: list[str] = []

    def load(data: bytes, where: str) -> Any:
        asked.append(where)
        return safe_load(data, where)

    monkeypatch.setattr(rank_pickles, "safe_load", load)
    return asked


@pytest.mark.parametrize("variant", ["fsdp2_w4", "hsdp_w4", "fsdp2_tp_uneven_w4", "smalldims_w4", "lora_w4"])
def test_shared_or_not_the_checkpoint_is_the_same(
    made: Made, variant: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = open_checkpoint(made(variant) / ROLE)
    monkeypatch.setattr(fsdp_pieces, "RankPickles", EachAlone)
    assert open_checkpoint(made(variant) / ROLE) == shared


@pytest.mark.parametrize("folder", OLD, ids=lambda path: f"{path.parent.name}-{path.name}")
def test_the_same_with_older_torch(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = open_checkpoint(folder)
    monkeypatch.setattr(fsdp_pieces, "RankPickles", EachAlone)
    assert open_checkpoint(folder) == shared


def test_ranks_that_hold_equal_parts_have_one_pickle(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = loads(monkeypatch)
    open_checkpoint(made("fsdp2_w4") / ROLE)
    assert len(asked) == 2  # the last rank's parts are shorter


def pickles(folder: Path) -> list[bytes]:
    """The pickles of a folder's rank files, in rank order."""
    found = []
    for path in sorted(folder.glob("model_world_size_*.pt")):
        with zipfile.ZipFile(path) as file:
            found.append(file.read(next(name for name in file.namelist() if name.endswith("/data.pkl"))))
    return found


def test_a_pickle_that_differs_in_any_other_byte_is_loaded(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = loads(monkeypatch)
    data = pickles(made("fsdp2_w4") / ROLE)[0]
    at = data.index(b"embed_tokens")
    other = data[:at] + b"E" + data[at + 1 :]
    reader = RankPickles()
    names = [set(reader.load(one, "here")) for one in (data, other, data)]
    assert len(asked) == 2  # not the third time
    assert names[0] == names[2] != names[1]


def test_what_only_looks_like_a_coordinate_is_not_shared() -> None:
    """A name with the very bytes of a mesh's coordinate: the ranks' names differ where it stands."""
    ranks = [
        pickle.dumps({f"X\x12\0\0\0_coordinate_on_dimq\x01(K{chr(rank)}t": 1}, protocol=2) for rank in (1, 2)
    ]
    reader = RankPickles()
    assert [list(reader.load(data, "here")) for data in ranks] == [list(pickle.loads(data)) for data in ranks]


def hashes(data: bytes) -> list[int]:
    """Where the eight bytes of each hash begin."""
    begin, get = rank_pickles._named(data, b"_hash") or (0, b"")
    later = re.finditer(re.escape(get) + b"\x8a\x08", data, re.DOTALL)
    return [found.end() for found in later if found.start() >= begin]


@pytest.mark.parametrize("field", ["_rank", "_hash", "_coordinate_on_dim"])
@pytest.mark.parametrize("first", [True, False])
def test_a_hash_with_the_bytes_of_a_field_changes_nothing(made: Made, field: str, first: bool) -> None:
    """A hash is a random number: with hundreds of them, one of some thousand files has such bytes."""
    folder = made("fsdp2_tp_uneven_w4") / ROLE
    plain = pickles(folder)
    found = 0
    for value in (b"K\x01", b"M\x01\x01", b"J\x01\1\1\1", b"\x8a\x01\x01", b"K\x01\x85"):
        name = rank_pickles._named(plain[0], field.encode())
        assert name is not None
        for at in hashes(plain[0])[:: max(1, len(hashes(plain[0])) // 5)]:
            for shift in range(0, 9 - len(name[1] + value)):
                changed = bytearray(plain[0])
                changed[at + shift : at + shift + len(name[1] + value)] = name[1] + value
                reader = RankPickles()
                order = [bytes(changed), *plain] if first else [*plain, bytes(changed)]
                for data in order:
                    assert described(reader.load(data, "here")) == described(safe_load(data, "here"))
                found += 1
    assert found > 20


def described(root: Any) -> list[Any]:
    """What a state dict says of its specs and meshes, in order, without what ckptconv never uses."""
    tables = (
        {key: part[key] for key in part if key not in ("_hash", "_rank")}
        for part in rank_pickles._tables(root)
    )
    return [sorted(map(repr, table.items())) for table in tables]


def test_remembering_forgets_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = loads(monkeypatch)
    monkeypatch.setattr(rank_pickles, "_MOST", 100)
    load = remembering()
    data = [pickle.dumps("x" * 40 + str(number), protocol=2) for number in range(4)]
    for one in (data[0], data[0], data[1], data[2], data[0]):
        assert load(one, "here") == pickle.loads(one)
    assert len(asked) == 4
