"""How often a `.distcp` file is read: at most 8 times to inspect it, at any number of tensors and of kinds of tensors."""

from __future__ import annotations

import os
import pickle
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from support.helpers import FIXTURES, unpacked
from torch.distributed import checkpoint as dcp
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata

from ckptconv import inspect
from ckptconv.backends import open_checkpoint
from ckptconv.errors import CkptconvError
from ckptconv.read.reader import read_numpy

MOST = 8
Tensors = dict[str, torch.Tensor]


@contextmanager
def counted() -> Iterator[Counter[str]]:
    """The reads of each `.distcp` file while the block runs."""
    counts: Counter[str] = Counter()
    pread = os.pread

    def read(handle: int, nbytes: int, offset: int) -> bytes:
        if (path := os.readlink(f"/proc/self/fd/{handle}")).endswith(".distcp"):
            counts[path] += 1
        return pread(handle, nbytes, offset)

    with patch.object(os, "pread", read):
        yield counts


def model(layers: int) -> Tensors:
    """More kinds of tensors than 8: dtypes, numbers of dims, sizes, small and large ones, and some that are turned."""
    found: Tensors = {}

    def put(name: str, *shape: int, dtype: torch.dtype = torch.bfloat16) -> None:
        found[name] = torch.arange(torch.Size(shape).numel()).reshape(shape).add(len(found)).to(dtype)

    put("model.embed_tokens.weight", 500, 192)
    for layer in range(layers):
        at = f"model.layers.{layer}"
        for name in "q", "k", "v", "o":
            put(f"{at}.self_attn.{name}_proj.weight", 192, 192)
            put(f"{at}.self_attn.{name}_proj.bias", 192)
        for name, shape in {"gate": (400, 192), "up": (400, 192), "down": (192, 400)}.items():
            put(f"{at}.mlp.{name}_proj.weight", *shape)
        put(f"{at}.router.weight", 200, 192, dtype=torch.float32)
        put(f"{at}.router.scale", 200, dtype=torch.float64)
        put(f"{at}.experts", 4, 60, 192, dtype=torch.float16)
        found[f"{at}.turned"] = torch.arange(48_000.0).reshape(200, 240).t() + layer
        put(f"{at}.input_layernorm.weight", 192)
        put(f"visual.blocks.{layer}.fc1.weight", 300, 150, dtype=torch.int32)
    put("lm_head.weight", 500, 192)
    return found


def saved(tensors: Tensors, folder: Path, files: int = 1) -> Path:
    """What a trainer saves: the model, an optimizer, and objects that are not tensors."""
    state = {name: {"exp_avg": torch.zeros_like(tensor)} for name, tensor in tensors.items()}
    content = {
        "model": tensors,
        "optim": {"state": state, "param_groups": [{"lr": 0.1, "params": list(tensors)}]},
        "train_state": {"step": 7, "loader": [{"seen": list(range(1000))}]},
    }
    writer = dcp.FileSystemWriter(folder, thread_count=files)
    dcp.save(content, storage_writer=writer, no_dist=True)
    return folder


@pytest.mark.parametrize("files", [1, 3])
def test_a_few_reads_at_any_number_of_tensors(tmp_path: Path, files: int) -> None:
    most = []
    for layers in 1, 6:
        folder = saved(model(layers), tmp_path / str(layers), files)
        with counted() as reads:
            assert inspect(folder).tensors == len(model(layers))
        assert len(reads) == files
        most.append(max(reads.values()))
    assert max(most) <= MOST


def test_all_elements_come_back_where_more_kinds_are_looked_at(tmp_path: Path) -> None:
    tensors = model(2)
    found = open_checkpoint(saved(tensors, tmp_path / "run")).tensors
    assert len(found) == len(tensors)
    for name, tensor in tensors.items():
        bits = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        assert read_numpy(found[name].view).tobytes() == bits, name


def test_elements_without_a_known_place_are_refused_and_never_wrong(tmp_path: Path) -> None:
    tensors = model(2)
    refused = 0
    for name, stored in open_checkpoint(saved(tensors, tmp_path / "run"), elements=False).tensors.items():
        try:
            values = read_numpy(stored.view)
        except CkptconvError as error:
            assert "another form" in error.what  # noqa: PT017 - some of them are refused, and some are read
            refused += 1
        else:
            assert values.tobytes() == tensors[name].contiguous().view(torch.uint8).numpy().tobytes()
    assert 0 < refused < len(tensors)


@pytest.mark.parametrize("variant", ["dcp_tp_w4", "dcp_hsdp_w4", "dcp_titan_w2", "dcp_app_w2", "dcp_lora_w2"])
def test_checkpoints_of_several_ranks(made: Callable[[str], Path], variant: str) -> None:
    with counted() as reads:
        found = inspect(made(variant) / "run")
    assert len(reads) >= found.world_size
    assert max(reads.values()) <= MOST


@pytest.mark.parametrize("kind", ["megatron", "megatron_fsdp"])
def test_checkpoints_of_megatron(kind: str) -> None:
    """Megatron-FSDP's arguments are an object in a `.distcp` file, which is read as well."""
    seen = 0
    for path in sorted(FIXTURES.glob(f"{kind}/*.tar.xz"))[::6]:
        with counted() as reads:
            inspect(unpacked(f"{kind}/{path.name.removesuffix('.tar.xz')}") / "run")
        seen += len(reads)
        assert max(reads.values(), default=0) <= MOST
    assert seen


def halves(folder: Path, *names: str) -> Path:
    """Make `NAME0` and `NAME1` two parts of one tensor `NAME`, as two ranks save it."""
    path = folder / ".metadata"
    metadata = pickle.loads(path.read_bytes())
    for name in names:
        one, two = (metadata.state_dict_metadata.pop(f"model.{name}{half}") for half in (0, 1))
        rows, columns = one.size
        corners = torch.Size((0, 0)), torch.Size((rows, 0))
        chunks = [
            ChunkStorageMetadata(corner, part.size) for corner, part in zip(corners, (one, two), strict=True)
        ]
        whole = TensorStorageMetadata(one.properties, torch.Size((2 * rows, columns)), chunks)
        metadata.state_dict_metadata[f"model.{name}"] = whole
        for half, corner in enumerate(corners):
            info = metadata.storage_data.pop(MetadataIndex(f"model.{name}{half}", torch.Size((0, 0))))
            metadata.storage_data[MetadataIndex(f"model.{name}", corner, half)] = info
            metadata.planner_data.pop(f"model.{name}{half}")
        metadata.planner_data[f"model.{name}"] = ("model", name)
    path.write_bytes(pickle.dumps(metadata))
    return folder


def parts(values: Callable[[int, int], torch.Tensor]) -> Tensors:
    """Two halves of 13 tensors; values(number of the tensor, half)."""
    return {f"w{n}.{half}": values(n, half) for n in range(13) for half in (0, 1)}


def split(tensors: Tensors, folder: Path) -> Path:
    return halves(saved(tensors, folder, files=2), *sorted({name[:-1] for name in tensors}))


def test_equal_largest_parts_do_not_make_two_files_copies(tmp_path: Path) -> None:
    """As in a model whose largest tensor begins with zeros: one more part tells the files apart."""
    tensors = parts(
        lambda n, half: torch.zeros(300, 100) if n == 0 else torch.full((100 + n, 100), half + 2.0 * n)
    )
    folder = split(tensors, tmp_path / "run")
    with counted() as reads:
        assert inspect(folder).tensors == 13
    assert len(reads) == 2
    assert max(reads.values()) <= MOST
    found = open_checkpoint(folder).tensors
    for number in range(13):
        whole = np.concatenate([tensors[f"w{number}.{half}"].numpy() for half in (0, 1)])
        assert np.array_equal(read_numpy(found[f"w{number}."].view), whole)


def test_a_file_that_is_a_copy_of_another_is_refused(tmp_path: Path) -> None:
    folder = split(parts(lambda n, half: torch.full((100 + n, 100), 1.0 + n)), tmp_path / "run")
    with pytest.raises(CkptconvError, match="hold the same bytes for different parts"):
        inspect(folder)
