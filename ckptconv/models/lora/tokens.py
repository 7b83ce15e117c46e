"""PEFT's trainable_token_indices: single rows of an embedding or a head that were trained.

In spite of its name, `X.token_adapter.trainable_tokens_delta` (n, dim) holds complete rows that replace rows of X.weight.
Only adapter_config.json says which rows. Sources: peft/tuners/trainable_tokens/layer.py (a merge is an index_copy);
peft/utils/other.py, TrainableTokensWrapper.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.lora.factors import NamedView
from ckptconv.tensors.view import View

KEY = "trainable_token_indices"


class Tokens(NamedTuple):
    """The trained rows of one weight.

    Args:
        weight: the bare name of the weight.
        rows: (stored name, elements of shape (n, dim)).
        indices: the rows of the weight that they replace, in the order of `rows`.
        is_stated: the settings state the indices for this weight; otherwise they are those of the weight that it is tied to.
    """

    weight: str
    rows: NamedView
    indices: tuple[int, ...]
    is_stated: bool = True

    @property
    def module(self) -> str:
        """The module's bare name."""
        return self.weight.removesuffix(".weight")


def rows_of_tokens(
    found: Mapping[str, NamedView], meta: Mapping[str, Any], weights: Mapping[str, View]
) -> tuple[Tokens, ...]:
    """The trained rows with their indices.

    Args:
        found: bare name of the weight -> its trained rows.
        meta: the LoRA settings.
        weights: bare name -> stored weight. If the weight is stored, its rows bound the indices.

    Raises:
        CkptconvError: the settings do not state the rows, or state another number of rows.
    """
    if meta.get(KEY) and not found:
        raise CkptconvError(
            f"the adapter's config names trained tokens in {KEY}, and none is stored",
            wanted="token_adapter.trainable_tokens_delta",
            kind=Kind.INCOMPLETE,
        )
    made = []
    stated = {weight: _indices(weight.removesuffix(".weight"), meta.get(KEY)) for weight in found}
    known = {indices for indices in stated.values() if indices is not None}
    for weight, (name, view) in found.items():
        # With a resized embedding, PEFT also saves the rows of the head that is tied to it.
        indices = next(iter(known)) if stated[weight] is None and len(known) == 1 else stated[weight]
        if indices is None:
            raise CkptconvError(
                f"which rows of its weight {name} replaces is not known",
                wanted=f"{KEY} in adapter_config.json",
                hint="put PEFT's adapter_config.json next to the tensors",
                kind=Kind.UNSUPPORTED,
            )
        if len(view.shape) != 2 or len(indices) != view.shape[0] or len(set(indices)) != len(indices):
            raise CkptconvError(
                f"the trained tokens of {name} do not fit {KEY}",
                found=f"{list(view.shape)}",
                wanted=f"{len(set(indices))} different rows",
            )
        whole = weights.get(weight)
        if whole is not None:
            check_bounds(weight, indices, whole.shape[0])
        made.append(Tokens(weight, (name, view), indices, stated[weight] is not None))
    return tuple(made)


def check_bounds(weight: str, indices: tuple[int, ...], rows: int) -> None:
    """Refuse an index outside the weight.

    Args:
        weight: the weight's name.
        indices: the rows.
        rows: the number of rows of the weight.
    """
    if indices and not 0 <= min(indices) <= max(indices) < rows:
        raise CkptconvError(
            f"{KEY} names a row that {weight} does not have",
            found=f"{min(indices)} to {max(indices)}",
            wanted=f"0 to {rows - 1}",
        )


def _indices(module: str, stated: object) -> tuple[int, ...] | None:
    """The indices that the setting states for a module, or None.

    The setting is a list, which is for the embedding, or a dict from (the end of) a module's name to a list.
    """
    if isinstance(stated, dict):
        stated = next(
            (value for key, value in stated.items() if module == key or module.endswith(f".{key}")), None
        )
    whole = isinstance(stated, list) and all(isinstance(n, int) and not isinstance(n, bool) for n in stated)
    return tuple(stated) if whole and isinstance(stated, list) else None
