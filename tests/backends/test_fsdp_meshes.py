"""Which rank holds which rows: the order of a mesh, submeshes, experts cut over ranks, attributes that are not known."""

from __future__ import annotations

import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from support.helpers import ROLE, assert_equal, cli, opened, own_copy, tensors, unpacked
from support.torch_files import edit_archive

from ckptconv import CkptconvError, merge
from ckptconv.backends import open_checkpoint
from ckptconv.tensors.checkpoint import Mesh

Made = Callable[[str], Path]
NEW = ("torch_2_14", "torch_2_15")
CASES = [
    *((folder, case) for folder in NEW for case in sorted(p.name for p in unpacked(folder).glob("fsdp*_w*"))),
]
CONFIG = '{"model_type": "odd", "architectures": ["Odd"]}'


def copied(folder: str, case: str, to: Path) -> Path:
    """A case in a folder of its own, with a config that names a class that nobody knows."""
    role = shutil.copytree(unpacked(folder) / case, to / "global_step_1" / "actor")
    (role / "huggingface").mkdir()
    (role / "huggingface" / "config.json").write_text(CONFIG)
    return role


def truth(folder: str, case: str) -> Path:
    return unpacked(folder) / ("truth_experts.safetensors" if "_ep" in case else "truth.safetensors")


@pytest.mark.parametrize(("folder", "case"), CASES)
def test_files_of_torch_2_14_and_2_15_come_back_bit_for_bit(folder: str, case: str) -> None:
    assert_equal(opened(unpacked(folder) / case), tensors(truth(folder, case)))


def test_the_fixtures_of_torch_2_15_hold_meshes_that_keep_their_order() -> None:
    assert {"fsdp2_preserved_w4", "fsdp2_preserved_hsdp_w4", "fsdp2_permuted_w4"} <= {
        case for folder, case in CASES if folder == "torch_2_15"
    }


@pytest.mark.parametrize(("folder", "case"), [("torch_2_14", "fsdp2_hsdp_w4"), ("torch_2_15", "fsdp2_tp_w4")])
def test_a_damaged_mesh_is_refused(folder: str, case: str, tmp_path: Path) -> None:
    """Its ranks are a tensor in the first rank's file: with another bit, rows would be in another order."""
    role = copied(folder, case, tmp_path)
    first = role / "model_world_size_4_rank_0.pt"
    raw = bytearray(first.read_bytes())
    ranks = struct.pack("<4i", 0, 1, 2, 3)
    assert raw.count(ranks) == 1
    raw[raw.index(ranks)] ^= 8
    first.write_bytes(raw)
    with pytest.raises(CkptconvError, match="the ranks of a mesh do not match their checksum") as refused:
        open_checkpoint(role)
    assert first.name in str(refused.value.where)


def relisted(path: Path, *ranks: int) -> None:
    """Let a file list other ranks of its meshes."""
    with zipfile.ZipFile(path) as old:
        entries = {name: old.read(name) for name in old.namelist()}
    plain, other = struct.pack("<4i", 0, 1, 2, 3), struct.pack("<4i", *ranks)
    assert plain in entries.values()
    with zipfile.ZipFile(path, "w") as new:
        for name, data in entries.items():
            new.writestr(name, other if data == plain else data)


def of_other_ranks(path: Path) -> None:
    relisted(path, 1, 0, 2, 3)


def of_other_names(path: Path) -> None:
    """Let a file call a dim of its mesh differently."""
    edit_archive(path, lambda data: data.replace(b"X\x04\0\0\0fsdp", b"X\x04\0\0\0rows"))


@pytest.mark.parametrize(
    ("case", "change"),
    [("fsdp2_tp_w4", of_other_ranks), ("fsdp2_tp_w4", of_other_names), ("fsdp2_hsdp_w4", of_other_names)],
)
def test_ranks_that_disagree_on_the_mesh_of_a_tensor_are_refused(
    case: str, change: Callable[[Path], None], tmp_path: Path
) -> None:
    role = copied("torch_2_15", case, tmp_path)
    change(role / "model_world_size_4_rank_1.pt")
    with pytest.raises(CkptconvError, match="ranks disagree on the mesh of") as refused:
        open_checkpoint(role)
    assert "model_world_size_4_rank_1.pt" in str(refused.value.where)


def test_a_mesh_that_lists_a_rank_twice_is_refused(tmp_path: Path) -> None:
    """Such as zeros, which torch.serialization.skip_data leaves."""
    role = copied("torch_2_15", "fsdp2_tp_w4", tmp_path)
    for path in role.glob("*.pt"):
        relisted(path, 0, 0, 0, 0)
    with pytest.raises(CkptconvError, match="lists a rank twice") as refused:
        open_checkpoint(role)
    assert "model_world_size_4_rank_0.pt" in str(refused.value.where)


# --- experts


def test_experts_are_joined_over_the_ep_mesh_and_inspect_shows_it(tmp_path: Path) -> None:
    role = copied("torch_2_15", "fsdp2_ep3_w6", tmp_path)
    merge(role, tmp_path / "out", dtype="keep")
    assert_equal(tensors(tmp_path / "out"), tensors(truth("torch_2_15", "fsdp2_ep3_w6")))
    assert Mesh((2, 3), ("ep_fsdp", "ep")) in open_checkpoint(role).meshes
    shown = cli("inspect", role, columns=200).out
    assert "ep_fsdp 2 × ep 3" in shown
    assert shown.count("ep_fsdp 2") == 1  # the submesh that shards the experts is not another mesh


@pytest.mark.parametrize("gone", [(1,), (1, 4)])
def test_experts_of_a_missing_rank_are_missing(tmp_path: Path, gone: tuple[int, ...]) -> None:
    """Ranks 1 and 4 are all that holds the experts of index 1."""
    role = copied("torch_2_14", "fsdp2_ep3_w6", tmp_path)
    for rank in gone:
        (role / f"model_world_size_6_rank_{rank}.pt").unlink()
    with pytest.raises(CkptconvError, match=r"of 6 (is|are) missing"):
        open_checkpoint(role)


def test_experts_under_another_name_of_the_mesh_dim_are_no_copies(tmp_path: Path) -> None:
    """Nothing says that the ranks along "xp" hold other experts, but their bytes differ."""
    role = copied("torch_2_14", "fsdp2_ep2_outer_w4", tmp_path)
    for path in role.glob("model_world_size_4_rank_*.pt"):
        edit_archive(path, lambda data: data.replace(b"X\x02\0\0\0ep", b"X\x02\0\0\0xp"))
    with pytest.raises(CkptconvError, match=r"copies of experts\.\w+ differ") as error:
        merge(role, tmp_path / "out", dtype="keep")
    assert "nothing says that either holds a part" in str(error.value.wanted)
    assert not (tmp_path / "out").exists()


# --- what is not known


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (
            b"X\x14\0\0\0_preserve_rank_order",
            b"X\x14\0\0\0_permuted_rank_order",
            "DeviceMesh .* _permuted_rank_order",
        ),
        (b"X\x0b\0\0\0shard_order", b"X\x0b\0\0\0shard_chaos", "DTensorSpec .* shard_chaos"),
        (b"X\x03\0\0\0dim", b"X\x03\0\0\0dum", "Shard .* dum"),
        (b"X\x06\0\0\0stride", b"X\x06\0\0\0strade", "_FlatLayout .* strade"),
    ],
)
def test_an_attribute_that_is_not_known_is_refused_by_name(
    tmp_path: Path, was: bytes, now: bytes, says: str
) -> None:
    role = copied("torch_2_15", "fsdp2_w2", tmp_path)
    changed = []

    def other(data: bytes) -> bytes:
        changed.append(was in data)
        return data.replace(was, now)

    for path in role.glob("model_world_size_2_rank_*.pt"):
        edit_archive(path, other)
    assert changed == [True, True]
    ran = cli("merge", role, tmp_path / "out", columns=300)
    assert ran.code == 2
    with pytest.raises(CkptconvError, match=says):
        open_checkpoint(role)


def test_an_unknown_attribute_is_refused_whatever_its_value(tmp_path: Path) -> None:
    """fsdp2_w2's mesh does not preserve an order: the flag is False there."""
    role = copied("torch_2_15", "fsdp2_w2", tmp_path)
    for path in role.glob("model_world_size_2_rank_*.pt"):
        edit_archive(path, lambda data: data.replace(b"_preserve_rank_order", b"_reversed_rank_order"))
    with pytest.raises(CkptconvError, match="_reversed_rank_order"):
        open_checkpoint(role)


def test_a_group_that_does_not_say_whether_it_sorts_is_refused(tmp_path: Path) -> None:
    """A name that is a hash is split_group's, which sorts until torch 2.13 and does not since 2.14."""
    role = copied("torch_2_14", "fsdp2_permuted_w4", tmp_path)
    for path in role.glob("model_world_size_4_rank_*.pt"):
        edit_archive(path, lambda data: data.replace(b"X\x01\0\0\x000", b"X\x01\0\0\0f"))
    with pytest.raises(CkptconvError, match="ranks do not ascend"):
        open_checkpoint(role)


# --- copies


def test_a_rank_file_that_is_a_copy_of_its_neighbours_is_refused(made: Made, tmp_path: Path) -> None:
    """HSDP: ranks 2 and 3 hold all that ranks 0 and 1 do, so that the model would still be whole."""
    run = own_copy(made("hsdp_w4"), tmp_path)
    paths = sorted((run / ROLE).glob("model_world_size_4_rank_*.pt"))
    shutil.copy(paths[0], paths[1])
    with pytest.raises(CkptconvError, match="rank 0 and rank 1 hold the same rank's shards"):
        open_checkpoint(run)


def test_two_names_for_one_rank_are_refused(made: Made, tmp_path: Path) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path)
    path = run / ROLE / "model_world_size_4_rank_1.pt"
    shutil.copy(path, path.with_name("model_world_size_4_rank_01.pt"))
    with pytest.raises(CkptconvError, match="rank 1 has two files in one folder"):
        open_checkpoint(run)


def test_also_with_the_same_rank_is_taken_only_with_the_same_bytes(made: Made, tmp_path: Path) -> None:
    run, other = own_copy(made("fsdp2_w4"), tmp_path / "run"), tmp_path / "other"
    other.mkdir()
    path = Path(shutil.copy(run / ROLE / "model_world_size_4_rank_1.pt", other))
    assert_equal(opened(run, also=[other]), tensors(made("fsdp2_w4") / "truth.safetensors"))
    shutil.copy(run / ROLE / "model_world_size_4_rank_2.pt", path)
    with pytest.raises(CkptconvError, match="two files of rank 1 have different bytes"):
        open_checkpoint(run, also=[other])
