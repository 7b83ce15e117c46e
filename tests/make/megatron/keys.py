"""Writes KEYS.md: what each family looks like on disk, from the fixtures."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import torch
from cases import CASES, Case
from check import read_shards
from make import FIXTURES
from pack import unpack

HEAD = """# Keys on disk

Written by `python tests/make/megatron/keys.py` from tests/fixtures/megatron. One layer of each kind, one expert, one
rank; shapes are the tensors' global ones (legacy: the rank's own). bf16 unless it says otherwise. Left out: `_extra_state`
(objects, empty), `rng_state/shard_P.T_PP.TP`, `optimizer.*`.
"""


def section(name: str, case: Case) -> str:
    """One fixture's keys."""
    with tempfile.TemporaryDirectory() as temporary:
        found = keys(unpack(FIXTURES / f"{name}.tar.xz", Path(temporary)) / "run", case)
    lines = [
        f"\n## {name}: {case.family}, {case.layout}, {case.bridge}, {case.parallelism or 'one rank'}\n",
        "```",
    ]
    lines += [
        f"{key}  {tuple(t.shape)}{'' if t.dtype == torch.bfloat16 else '  ' + str(t.dtype)[6:]}"
        for key, t in found
    ]
    return "\n".join([*lines, "```"])


def keys(run: Path, case: Case) -> list[tuple[str, torch.Tensor]]:
    """The keys of one rank's file or of a torch_dist folder, less what repeats."""
    if case.layout.endswith("legacy"):
        file = sorted(run.rglob("mp_rank_*/*.pt"))[0]
        loaded = torch.load(file, weights_only=False)
        chunks = (
            loaded if isinstance(loaded, list) else [v for k, v in loaded.items() if k.startswith("model")]
        )
        found = {
            k: v for k, v in chunks[0].items() if isinstance(v, torch.Tensor) and "_extra_state" not in k
        }
    else:
        folders = [each.parent for each in run.rglob(".metadata")]
        found = read_shards(next(each for each in folders if each.parent.name not in ("extra", "optimizer")))
    shown: dict[str, tuple[str, torch.Tensor]] = {}
    for key in sorted(
        found, key=lambda each: [int(p) if p.isdecimal() else p for p in re.split(r"(\d+)", each)]
    ):
        tensor = found[key]
        pattern = re.sub(r"experts\.\d+\.|weight\d+$|blocks\.\d+\.", "#", key)
        pattern = re.sub(r"layers\.\d+\.", "layers.#.", pattern) + str(tuple(tensor.shape))
        shown.setdefault(pattern, (key, tensor))
    return list(shown.values())


def main() -> None:
    text = HEAD + "".join(
        section(name, case) + "\n" for name, case in CASES.items() if (FIXTURES / f"{name}.tar.xz").is_file()
    )
    (Path(__file__).parent / "KEYS.md").write_text(text)


if __name__ == "__main__":
    main()
