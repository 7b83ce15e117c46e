"""Recognises Megatron's rank files: mp_rank_TT[_PPP][_EEE]/model_optim_rng.pt (Megatron-LM) or model.pt (verl v0).

`joined_ranks` reads them; it is imported where a folder has some.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from ckptconv.backends.megatron import evidence
from ckptconv.backends.runs import Place
from ckptconv.errors import CkptconvError, Kind
from ckptconv.tensors.checkpoint import Checkpoint
from ckptconv.tensors.far import names_in

NAME = "megatron_legacy"
SIGN = "mp_rank_TT_PPP/ (Megatron rank files)"
IS_SHARDED = True
saved_by = evidence.saved_by
FOLDER = re.compile(r"^mp_rank_(\d+)(?:_(\d+))?(?:_(\d+))?$")


def is_mine(folder: Path) -> bool:
    """True for a folder with mp_rank_* folders, directly or in model/, where verl puts them."""
    return _home(folder) is not None


def read(place: Place, also: Sequence[Path] = ()) -> Checkpoint:
    """Read every rank's metadata, and join pipeline stages, experts and TP parts.

    Args:
        place: the step's folder.
        also: further folders with mp_rank_* folders.

    Raises:
        Incomplete: a rank is missing.
        CkptconvError: the rank files do not fit together.
    """
    from ckptconv.backends.megatron.joined_ranks import joined_ranks

    home = _home(place.folder)
    if home is None:
        raise CkptconvError("no mp_rank_* folders here", where=place.folder, kind=Kind.NOT_A_CHECKPOINT)
    return joined_ranks(place, [home, *(_home(path) or path for path in also)])


def _home(folder: Path) -> Path | None:
    """The folder with the mp_rank_* folders; None if there is none."""
    for path in (folder, folder / "model"):
        if path.is_dir() and any((path / name).is_dir() for name in filter(FOLDER.match, names_in(path))):
            return path
    return None
