"""Replicas are read and compared; a copy that drifted is named with its rank."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptconv.backends import open_checkpoint
from ckptconv.commands.merge.run import merge
from ckptconv.commands.verify import verify
from ckptconv.errors import CkptconvError
from ckptconv.read.replicas import deviations, require_equal, worth_reading
from ckptconv.tensors.checkpoint import Checkpoint

NORM = "model.layers.1.input_layernorm.weight"
Made = Callable[[str], Path]


def drift(checkpoint: Checkpoint, name: str, copy: int, element: int) -> tuple[int, tuple[int, ...]]:
    """Flip a bit of one copy of a tensor; returns its rank and the element's index in the tensor."""
    offsets, view = checkpoint.tensors[name].replicas[copy]
    chunk = view.chunks[0]
    data = bytearray(Path(chunk.file).read_bytes())
    data[chunk.start + element * chunk.strides[-1]] ^= 0x10
    Path(chunk.file).write_bytes(data)
    return checkpoint.rank_of[chunk.file], (*offsets[:-1], offsets[-1] + element)


@pytest.mark.parametrize(
    "variant", ["hsdp_w4", "hsdp_oddnames_w4", "fsdp2_tp_uneven_w4", "buffers_w2", "fsdp2_w4"]
)
def test_equal_copies(made: Made, variant: str) -> None:
    require_equal(open_checkpoint(made(variant)))


def test_a_norm_that_differs(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("hsdp_w4"), tmp_path / "run"))
    checkpoint = open_checkpoint(folder)
    assert checkpoint.tensors[NORM].placement == "(Replicate, Shard(0))"
    rank, index = drift(checkpoint, NORM, copy=1, element=4)
    (found,) = deviations(checkpoint)
    assert (found.name, found.rank, found.index, found.count) == (NORM, rank, index, 1)
    assert found.used != rank
    with pytest.raises(CkptconvError, match=r"copies of .* differ") as error:
        require_equal(checkpoint)
    assert NORM in error.value.what
    assert f"rank {rank} and rank {found.used} differ in 1 elements, first at {list(index)}" in str(
        error.value
    )


def test_a_norm_that_differs_over_tensor_parallel_ranks(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("fsdp2_tp_uneven_w4"), tmp_path / "run"))
    checkpoint = open_checkpoint(folder)
    rank, index = drift(checkpoint, NORM, copy=0, element=2)
    (found,) = deviations(checkpoint)
    assert (found.rank, found.index) == (rank, index)


def test_every_copy_and_tensor_is_told(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("buffers_w2"), tmp_path / "run"))
    checkpoint = open_checkpoint(folder)
    names = [name for name, tensor in checkpoint.tensors.items() if tensor.replicas and tensor.view.shape][:2]
    for name in names:
        drift(checkpoint, name, copy=0, element=0)
    assert [(d.name, d.rank, d.used) for d in deviations(checkpoint)] == [(name, 1, 0) for name in names]
    with pytest.raises(CkptconvError, match="and 1 more tensor"):
        require_equal(checkpoint)


def test_verify_and_merge_tell_it(made: Made, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made("hsdp_w4"), tmp_path / "run"))
    rank, _ = drift(open_checkpoint(folder), NORM, copy=0, element=0)
    result = verify(folder, against=made("hsdp_w4") / "hub")
    layer = result.layer("replicas")
    assert layer is not None
    assert layer.ok is False
    assert layer.problems[0].name == NORM
    assert f"rank {rank}'s copy differs" in layer.problems[0].what
    assert (result.layer("values") or layer).ok is True, "the copy that is used is right"
    with pytest.raises(CkptconvError, match="copies of"):
        merge(folder, tmp_path / "out", check_replicas=True)
    assert not (tmp_path / "out").exists()


# --- what merge compares by default


def test_a_small_replica_that_differs_stops_a_merge_without_any_flag(made: Made, tmp_path: Path) -> None:
    """The files' checksums are as they were, so only reading finds it."""
    run = shutil.copytree(made("hsdp_w4"), tmp_path / "run")
    rank, _ = drift(open_checkpoint(run), NORM, 0, 1)
    with pytest.raises(CkptconvError, match=f"copies of {NORM} differ") as error:
        merge(run, tmp_path / "out")
    assert f"rank {rank} and rank" in str(error.value.found)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("apart", "refused"), [(0, False), (1, True)])
def test_large_plain_tensors_of_all_ranks_are_compared_by_checksum(
    tmp_path: Path, apart: int, refused: bool
) -> None:
    """No mesh says that they are copies, and they are larger than what is read by default."""
    import torch

    whole = torch.randn(600, 1000)
    for rank in range(2):
        torch.save({"w": whole + rank * apart}, tmp_path / f"model_world_size_2_rank_{rank}.pt")
    checkpoint = open_checkpoint(tmp_path)
    assert worth_reading(checkpoint) == ({"w"} if refused else set())
    if refused:
        with pytest.raises(CkptconvError, match="copies of w differ"):
            require_equal(checkpoint, everything=False)
