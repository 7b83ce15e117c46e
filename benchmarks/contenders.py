"""Who takes part: ckptconv, the tools that do the same job today, and the floor that no tool can go under."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from benchmarks.sizes import Checkpoint, Size

_DCP_TO_TORCH = (
    "import sys; from torch.distributed.checkpoint.format_utils import dcp_to_torch_save;"
    " dcp_to_torch_save(sys.argv[1], sys.argv[2])"
)


@dataclass(frozen=True, slots=True)
class Contender:
    """A timed command. output: what it writes, removed after each run. nbytes: the least it must write."""

    key: str
    label: str
    dtype: str
    command: tuple[str, ...]
    inputs: tuple[Path, ...]
    output: Path | None
    nbytes: int
    is_floor: bool = False


def contenders(
    size: Size, checkpoint: Checkpoint, scratch: Path, verl_python: str | None, zero_python: str | None
) -> list[Contender]:
    """Everyone, in the order of the table. Without a peer's python, that peer is left out."""
    ranks, shards = tuple(checkpoint.rank_files()), tuple(checkpoint.dcp_files())
    half, full = 2 * size.parameters, 4 * size.parameters
    out, python = scratch / "out", sys.executable
    merge = (python, "-m", "ckptconv", "merge", str(checkpoint.actor), str(out))
    keep = (*merge, "--dtype", "keep")
    from_dcp = (python, "-m", "ckptconv", "merge", str(checkpoint.dcp), str(out), "--dtype", "keep")
    from_dcp += ("--config", str(checkpoint.actor / "huggingface"))
    verl: tuple[str, ...] = (verl_python or "", "-m", "verl.model_merger", "merge", "--backend", "fsdp")
    verl += ("--local_dir", str(checkpoint.actor), "--target_dir", str(out))
    zero = tuple(checkpoint.zero_files())
    from_zero = (python, "-m", "ckptconv", "merge", str(checkpoint.zero), str(out), "--dtype", "keep")
    zero_to_fp32: tuple[str, ...] = (zero_python or "", "-m", "deepspeed.utils.zero_to_fp32")
    zero_to_fp32 += (str(checkpoint.zero), str(out), "--safe_serialization")
    accelerate = (str(Path(python).with_name("accelerate")), "merge-weights", str(checkpoint.dcp), str(out))
    to_torch = (python, "-c", _DCP_TO_TORCH, str(checkpoint.dcp), str(out))
    # The floor beside those who are measured by it, with the same files read before: how much of memory the page cache
    # holds decides what a write costs, and a tool of 16 GB leaves it empty behind it.
    found = [
        Contender("ckptconv", "ckptconv merge", "bf16", merge, ranks, out, half),
        cat("cat-ranks", "cat of the rank files", ranks),
        write("write-bf16", "dd of the bf16 size", "bf16", ranks, out, half),
        write("sync-bf16", "dd conv=fsync of the bf16 size", "bf16", ranks, out, half, "conv=fsync"),
        Contender("ckptconv-fp32", "ckptconv merge --dtype keep", "fp32", keep, ranks, out, full),
        write("write-fp32", "dd of the fp32 size", "fp32", ranks, out, full),
        write("sync-fp32", "dd conv=fsync of the fp32 size", "fp32", ranks, out, full, "conv=fsync"),
        Contender("ckptconv-dcp", "ckptconv merge of the DCP folder", "fp32", from_dcp, shards, out, full),
        Contender("verl", "verl 0.9.1 model_merger", "bf16", verl, ranks, out, half),
        Contender("accelerate", "accelerate merge-weights", "fp32", accelerate, shards, out, full),
        Contender("dcp", "dcp_to_torch_save", "fp32", to_torch, shards, out, full),
        cat("cat-dcp", "cat of the DCP files", shards),
        Contender("ckptconv-zero", "ckptconv merge of ZeRO-2", "fp32", from_zero, zero, out, full),
        Contender("zero", "zero_to_fp32", "fp32", zero_to_fp32, zero, out, full),
    ]
    left_out = {"verl"} if not verl_python else set()
    left_out |= {"zero", "ckptconv-zero"} if not zero_python else set()
    left_out |= {"ckptconv-dcp", "verl", "accelerate", "dcp", "cat-dcp"} if size.is_large else set()
    return [one for one in found if one.key not in left_out]


def cat(key: str, label: str, files: tuple[Path, ...]) -> Contender:
    command = ("sh", "-c", 'cat "$@" > /dev/null', "cat", *map(str, files))
    return Contender(key, label, "", command, files, None, 0, is_floor=True)


def write(
    key: str, label: str, dtype: str, warm: tuple[Path, ...], out: Path, nbytes: int, *more: str
) -> Contender:
    command = ("dd", "if=/dev/zero", f"of={out}", "bs=128K", f"count={nbytes}", "iflag=count_bytes,fullblock")
    return Contender(key, label, dtype, (*command, "status=none", *more), warm, out, nbytes, is_floor=True)
