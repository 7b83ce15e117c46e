"""The path that was probably meant where nothing is at the one that was typed."""

from __future__ import annotations

from pathlib import Path

from ckptconv.tensors.look import is_dir, names_in


def meant(path: Path) -> str | None:
    """The question that a hint asks: "did you mean checkpoints/run?"; None where no name is near.

    Args:
        path: a path at which nothing exists. Of a store the folders above are listed.
    """
    from difflib import get_close_matches  # only mistakes need it

    there = path.parent
    while not is_dir(there) and there != there.parent:
        path, there = there, there.parent
    try:
        names = names_in(there)
    except OSError:
        return None
    near = get_close_matches(path.name, names, 1, 0.6)
    return f"did you mean {there / near[0]}?" if near else None
