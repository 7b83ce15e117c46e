"""Layer reads: which other software would misread the folder, and why."""

from __future__ import annotations

from ckptconv.commands.verify.records import Layer
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.models.readers import Misread, misreads
from ckptconv.publish.tokenizer_config import TOKENIZER_CONFIG, misread

_PROVES = "transformers 4 and 5 take the values that the folder states"


def misread_by(side: Side) -> list[Misread]:
    """What other software would misread in a model folder; nothing for a trainer's checkpoint, which only ckptconv reads."""
    if not side.is_folder or side.is_adapter or side.config is None:
        return []
    try:
        tokenizer = tuple(misread(read_table(side.checkpoint.root / TOKENIZER_CONFIG)))
    except CkptconvError:  # the layer integrity reports it
        tokenizer = ()
    shapes = {name: tuple(output.shape) for name, output in side.tensors.items()}
    return misreads(side.config, shapes, tokenizer)


def reads_layer(side: Side, found: list[Misread]) -> list[Layer]:
    """The layer for a model folder.

    It passes only if no reader takes other values in silence, but for readers that misread every folder of the model. It
    never fails: the folder is right for its own generation, and only the user knows who will read it.
    """
    if not side.is_folder or side.is_adapter or side.config is None:
        return []
    silent = [each for each in found if each.silent]
    here = ", ".join(dict.fromkeys(each.reader for each in silent if not each.any_folder))
    other = ", ".join(dict.fromkeys(each.reader for each in silent if each.any_folder))
    summary = (
        f"{here} would misread this folder and say nothing"
        if here
        else "no known reader silently misreads it"
    )
    if other and not here:
        summary = f"misread in silence only by {other}, as is every folder of this model"
    notes = [f"{each.reader} {each.what} ({each.source})" for each in silent]
    if any(each.by_merge for each in silent):
        notes.append("ckptconv merge FOLDER OUT writes a folder that both generations read")
    notes += [f"{each.reader} {each.what}" for each in found if not each.silent]
    return [Layer("reads", None if here else True, _PROVES, summary, (), tuple(notes))]
