"""How Megatron-DeepSpeed and GPT-NeoX cut parameters over tensor parallel ranks: their files have no affine map.

Megatron-DeepSpeed writes patterns of names under `universal_checkpoint_info` (deepspeed/checkpoint/ds_to_universal.py,
`merge_tp_slices`, says what each means). GPT-NeoX writes none; its layers' names say it (EleutherAI/gpt-neox,
megatron/model/transformer.py and tools/ckpts/convert_neox_to_hf.py), and their shapes whether queries are grouped and
whether the MLP has a gate.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ckptconv.backends.deepspeed.affine import Layout
from ckptconv.backends.deepspeed.files import table
from ckptconv.errors import CkptconvError, Kind
from ckptconv.formats.inert import items
from ckptconv.formats.torch_zip import TorchZip
from ckptconv.tensors.boxes import Box, Shape

Parts = Sequence[Shape]  # the shape of a parameter's part on each rank
_REPLICATED, _ROWS = "tp_replicated_parameter_patterns", "parameter_with_row_parallelism_patterns"
_HALVES, _VOCABULARY = "parameter_with_2_sub_params_cat_dim_0", "vocabulary_parameter_patterns"
_UNREAD = {
    "parameter_to_average_patterns": "an average of the ranks' parts",
    "parameter_with_sub_params": "several parameters in one",
}
_TOKEN = re.compile(r"\\d\+|\\\.|[A-Za-z0-9_.]")

_NEOX = re.compile(r"^((?:sequential\.)?\d+\.|tied_modules\.embed\.)(.+)$", re.DOTALL)
_MARK = "attention.query_key_value.weight"
_COLUMN = re.compile(
    r"word_embeddings\.weight|(attention\.query_key_value|mlp\.(dense_h_to_4h|linear1|w1|w3))\.(weight|bias)"
)
_ROW = re.compile(r"(attention\.dense|mlp\.(dense_4h_to_h|linear2|w2))\.(weight|bias)")
_WHOLE = re.compile(
    r"(input_layernorm|post_attention_layernorm|norm)\.(weight|bias|scale)|attention\.rotary_emb\.inv_freq"
)


def layouts_by_names(
    root: Mapping[str, Any], parts: Mapping[str, Parts], file: TorchZip
) -> dict[str, Layout]:
    """Return name -> layout, for the parameters whose cut the patterns or GPT-NeoX's names say.

    Args:
        root: the contents of a model file.
        parts: the parameter's name -> the shape of each tensor parallel rank's part.
        file: the model file, for error messages.

    Raises:
        CkptconvError: a pattern is of a kind that ckptconv does not read, or a part does not have the shape that it says.
    """
    info = table(root.get("universal_checkpoint_info"), "universal_checkpoint_info", file)
    if any(key in info for key in (_REPLICATED, _ROWS, _HALVES)):
        return _by_patterns(info, parts, file)
    if any((match := _NEOX.match(name)) and match[2] == _MARK for name in parts):
        return _of_neox(parts)
    return {}


def whole_shapes(root: Mapping[str, Any], parts: Mapping[str, Parts], file: TorchZip) -> dict[str, Shape]:
    """Return name -> the shape in a universal checkpoint, whose vocabulary has no padding; see `layouts_by_names`."""
    found = {name: layout.shape for name, layout in layouts_by_names(root, parts, file).items()}
    info = table(root.get("universal_checkpoint_info"), "universal_checkpoint_info", file)
    rows, pattern = info.get("original_vocab_size"), _compiled(info.get(_VOCABULARY), file)
    for name, shape in found.items():
        if type(rows) is int and shape and pattern.match(name):
            found[name] = (min(rows, shape[0]), *shape[1:])
    return found


def _by_patterns(info: Mapping[str, Any], parts: Mapping[str, Parts], file: TorchZip) -> dict[str, Layout]:
    known = {key: _compiled(info.get(key), file) for key in (_REPLICATED, _ROWS, _HALVES)}
    for key, what in _UNREAD.items():
        if items(info.get(key)):
            raise CkptconvError(
                f"the checkpoint says that a parameter is {what} of tensor parallel ranks, which is not read",
                where=file.path,
                found=key,
                kind=Kind.UNSUPPORTED,
            )
    found = {}
    for name, shapes in parts.items():
        kinds = [key for key, pattern in known.items() if pattern.match(name)]
        if len(kinds) > 1:
            raise CkptconvError(
                f"the checkpoint says two things about how {name} is cut",
                where=file.path,
                found=" and ".join(kinds),
            )
        if kinds == [_REPLICATED]:
            found[name] = replicated(shapes)
        elif kinds == [_HALVES]:
            found[name] = cut(name, shapes, 0, [(shape[0] // 2,) * 2 for shape in shapes])
        else:
            found[name] = cut(name, shapes, 1 if kinds else 0)
    return found


def _compiled(patterns: Any, file: TorchZip) -> re.Pattern[str]:
    """Return one pattern for a list of DeepSpeed's, which match at the beginning of a name.

    Only letters, digits, dots and `\\d+` are accepted: another program's pattern may take for ever.
    """
    made = []
    for pattern in items(patterns):
        text = pattern if isinstance(pattern, str) else ""
        tokens = _TOKEN.findall(text)
        if not text or "".join(tokens) != text:
            raise CkptconvError(
                "the checkpoint has a pattern of names that is not read",
                where=file.path,
                found=pattern,
                wanted=r"letters, digits, dots and \d+",
                kind=Kind.UNSUPPORTED,
            )
        made.append("".join("[0-9]+" if token == r"\d+" else token for token in tokens))
    return re.compile("|".join(made) if made else r"(?!)", re.DOTALL)


def _of_neox(parts: Mapping[str, Parts]) -> dict[str, Layout]:
    found = {}
    for name, shapes in parts.items():
        match = _NEOX.match(name)
        if match is None:
            continue
        layer, rest = match[1], match[2]
        if _WHOLE.fullmatch(rest):
            found[name] = replicated(shapes)
        elif rest == "final_linear.weight":
            # Cut by rows, or by columns with output_layer_parallelism "row": the embedding has all columns.
            widths = {
                s[0][1] for n, s in parts.items() if n.endswith("word_embeddings.weight") and len(s[0]) == 2
            }
            found[name] = cut(name, shapes, 0 if shapes[0][-1:] == tuple(widths) else 1)
        elif _COLUMN.fullmatch(rest):
            found[name] = cut(name, shapes, 0, _within(layer, rest, shapes, parts))
        elif _ROW.fullmatch(rest):
            found[name] = cut(name, shapes, 1) if rest.endswith("weight") else summed(shapes)
    return found


def _within(layer: str, rest: str, shapes: Parts, parts: Mapping[str, Parts]) -> list[tuple[int, ...]] | None:
    """Return the rows of the parameters that a rank's part holds one after another, or None if it is one parameter."""
    if rest.startswith("attention.query_key_value."):
        after = parts.get(f"{layer}attention.dense.weight", ())
        queries = [shape[-1] for shape in after]
        if len(queries) == len(shapes) and all(s[0] != 3 * q for s, q in zip(shapes, queries, strict=True)):
            # Grouped queries: all queries of the rank, its keys, its values. Otherwise each head has its own three.
            return [(q, (s[0] - q) // 2, (s[0] - q) // 2) for s, q in zip(shapes, queries, strict=True)]
    if rest.startswith("mlp.linear1."):
        after = parts.get(f"{layer}mlp.linear2.weight", ())
        if len(after) == len(shapes) and all(s[0] == 2 * d[-1] for s, d in zip(shapes, after, strict=True)):
            return [(shape[0] // 2,) * 2 for shape in shapes]
    return None


def replicated(parts: Parts) -> Layout:
    """Return the layout of a parameter that every rank holds whole."""
    whole = Box((0,) * len(parts[0]), parts[0])
    return Layout(parts[0], tuple(parts), tuple(((whole, whole),) for _ in parts))


def summed(parts: Parts) -> Layout:
    """Return the layout of a parameter that is the sum of the ranks' tensors: they are stacked along a new dim 0."""
    shape = (len(parts), *parts[0])
    zeros = (0,) * len(parts[0])
    pieces = tuple(
        ((Box((rank, *zeros), (1, *parts[0])), Box((0, *zeros), (1, *parts[0]))),)
        for rank in range(len(parts))
    )
    return Layout(shape, tuple((1, *part) for part in parts), pieces, is_sum=True)


def cut(name: str, parts: Parts, dim: int, inside: Iterable[Sequence[int]] | None = None) -> Layout:
    """Return the layout of a parameter that is cut along one dim.

    Args:
        name: the parameter, for the error message.
        parts: the shape of each rank's part.
        dim: the dim.
        inside: for each rank, the sizes along `dim` of the parameters that its part holds one after another. The whole
            has them in the same order, each from all ranks.

    Raises:
        CkptconvError: the parts differ in another dim, or the sizes do not add up.
    """
    sizes = [(part[dim],) if len(part) > dim else () for part in parts] if inside is None else list(inside)
    fits = all(
        len(part) > dim
        and sum(own) == part[dim]
        and len(own) == len(sizes[0])
        and part[:dim] + part[dim + 1 :] == parts[0][:dim] + parts[0][dim + 1 :]
        for part, own in zip(parts, sizes, strict=True)
    )
    if not fits:
        raise CkptconvError(
            f"the parts of {name} do not fit together",
            found=", ".join(str(list(part)) for part in parts),
            wanted=f"parts along dim {dim}",
            hint="the files are of different saves: copy all of one step again",
        )
    at = 0  # in the whole
    pieces: list[list[tuple[Box, Box]]] = [[] for _ in parts]
    begins = [0] * len(parts)
    for index in range(len(sizes[0])):
        for rank, own in enumerate(sizes):
            box = tuple(own[index] if d == dim else size for d, size in enumerate(parts[rank]))
            source, dest = (
                tuple(begin if d == dim else 0 for d in range(len(box))) for begin in (at, begins[rank])
            )
            if all(box):
                pieces[rank].append((Box(source, box), Box(dest, box)))
            at, begins[rank] = at + own[index], begins[rank] + own[index]
    whole = tuple(at if d == dim else size for d, size in enumerate(parts[0]))
    return Layout(whole, tuple(parts), tuple(map(tuple, pieces)))
