"""Layer reads: which other software would misread the folder, and why."""

from __future__ import annotations

from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import CkptconvError
from ckptconv.formats.json import read_table
from ckptconv.models.readers import misreads
from ckptconv.publish.tokenizer_config import TOKENIZER_CONFIG, misread

_PROVES = "transformers 4 and 5 take the values that the folder states"
_HINT = "merge it again without --keep-config; ckptconv merge FOLDER OUT rewrites a model folder"


def reads_layer(side: Side) -> list[Layer]:
    """The layer for a model folder; nothing for a trainer's checkpoint, which others do not read.

    A reader that takes other values and says nothing is a problem. One that stops with an error is noted.
    """
    if not side.is_folder or side.is_adapter or side.config is None:
        return []
    try:
        tokenizer = tuple(misread(read_table(side.checkpoint.root / TOKENIZER_CONFIG)))
    except CkptconvError:  # reported by the layer integrity
        tokenizer = ()
    shapes = {name: tuple(output.shape) for name, output in side.tensors.items()}
    found = misreads(side.config, shapes, tokenizer)
    problems = tuple(Problem(each.reader, each.what, each.source, _HINT) for each in found if each.silent)
    notes = tuple(f"{each.reader} {each.what}" for each in found if not each.silent)
    silent = dict.fromkeys(each.reader for each in found if each.silent)
    said = (
        f"misread in silence by {', '.join(silent)}" if silent else "no known reader misreads it in silence"
    )
    return [Layer("reads", not problems, _PROVES, said, problems, notes)]
