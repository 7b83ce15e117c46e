"""Apply a family's table to a checkpoint's tensors, in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.facts import named_architectures
from ckptconv.models.family import Config, Family, Rule
from ckptconv.models.grouped import Group, collect
from ckptconv.models.hub_names import Named, Renamed
from ckptconv.models.nested import text_of
from ckptconv.models.pieces import Piece, Pieces
from ckptconv.models.rules import Layout, to_hub_layout, to_trained_layout
from ckptconv.tensors.view import View, narrow

T = TypeVar("T")
F = TypeVar("F")
# What a table raises where config.json has text, a list or 0 in the place of a number.
_NO_NUMBERS = (TypeError, ValueError, ArithmeticError, AttributeError, LookupError)


def chosen(families: Mapping[str, F], config: Config, whose: str) -> F:
    """Return the family for a config's model type.

    Args:
        families: model type -> family, for one trainer.
        config: the model's config.json.
        whose: the trainer's name, for the error message.

    Raises:
        CkptconvError: the trainer has no family for this model type; the error lists the known types.
    """
    model_type = str(config.get("model_type"))
    if model_type not in families:
        raise CkptconvError(
            f"no table for the tensors of {model_type!r} in {whose}",
            found=", ".join(named_architectures(config)) or None,
            wanted=", ".join(sorted(families)),
            hint="add a table of about 20 lines (docs/adding-a-model.md); inspect works without one",
            kind=Kind.UNSUPPORTED,
        )
    return families[model_type]


def made(families: Mapping[str, Callable[[Config], Family]], config: Config, whose: str) -> Family:
    """Return the family that a trainer's table makes from the config; see `chosen`.

    Raises:
        CkptconvError: there is no family for the model type, or the config lacks a key that the table needs.
    """
    table = chosen(families, config, whose)
    try:
        return table(config)
    except KeyError as error:
        raise CkptconvError(
            "config.json does not give the number of experts per layer",
            wanted=error.args[0],
            hint="name another: --config DIR",
        ) from error
    except _NO_NUMBERS as error:
        raise _no_numbers(error) from error


def _no_numbers(error: Exception) -> CkptconvError:
    return CkptconvError(
        "config.json has a value of another kind than its key",
        found=f"{type(error).__name__}: {error}",
        hint="pass the right model: --config DIR or --config org/name",
    )


def to_hub(family: Family, tensors: Mapping[str, T], config: Config, whose: str) -> Renamed[T]:
    """Convert a trainer's tensors to the Hub's names and layouts. Vocabulary padding is dropped, with its reason.

    Args:
        family: the table.
        tensors: canonical name -> tensor.
        config: the model's config.json.
        whose: the trainer's name, for the report.

    Raises:
        CkptconvError: no rule matches a name, or some tensors of a rule are missing.
    """
    family = family.variant_for(tensors.keys())
    made: dict[str, Named[T]] = {}
    left_out: list[tuple[str, T, str]] = []
    counts: dict[int, list[Any]] = {}  # of a rule: itself, and how many tensors it took
    numbers: dict[str, None] = {}  # of MTP layers, as the Hub numbers them
    notes: dict[str, None] = {}
    known: dict[int, tuple[Layout, ...]] = {}  # a rule's layout changes, which are the same for every layer
    for group in collect(family, tensors):
        rule = group.rule
        counts.setdefault(id(rule), [rule, 0])[1] += len(group.found)
        stored = _in_order(group)
        sources = tuple([name for name, _ in stored])
        if rule.reason:
            left_out += [(name, value, rule.reason) for name, value in group.found.values()]
            continue
        holes = _shift(group.holes, config, 1) or {}
        numbers |= {holes[hole]: None for hole in ("mtp",) if hole in holes}
        names, pieces, without_name = _apply(group, stored, holes, config, known)
        if rule.if_cut and any(_is_cut(value) for _, value in stored):
            notes[rule.if_cut] = None
        if rule.note:
            notes[rule.note] = None
        left_out += without_name
        for name, piece in zip(names, pieces, strict=True):
            if name in made:
                raise CkptconvError(
                    f"two stored tensors become {name}", found=f"{sources[0]}, {made[name].sources[0]}"
                )
            factor = 1.0 if rule.factor is None else rule.factor(config)
            made[name] = Named(piece.value, piece.shape, sources, rule.added, factor=factor)
    rules = [f"{rule.text} ({count:,})" for rule, count in counts.values()]
    copies = {copy.fill({"mtp": n}): of for n in numbers for copy, of in family.copies if of in made}
    return Renamed(made, [f"{family.name} in {whose}'s names", *rules], left_out, copies, list(notes))


def to_trained(family: Family, tensors: Mapping[str, T], config: Config) -> dict[str, T]:
    """Convert the Hub's tensors to the trainer's canonical names and layouts, the inverse of `to_hub`.

    Vocabulary padding is not restored, and the Hub's copies are dropped.

    Args:
        family: the table.
        tensors: Hub name -> numpy array or torch tensor.
        config: the model's config.json.

    Raises:
        CkptconvError: no rule matches a name, or a rule adds a number to the values or scales them, and the
            inverse would round.
    """
    groups: dict[tuple[str, ...], tuple[Rule, dict[str, str], dict[int, Piece[T]]]] = {}
    for name, value in tensors.items():
        if any(copy.match(name) for copy, _ in family.copies):
            continue
        rule, place, holes = _rule_back(family, name, config)
        key = (rule.text, *holes.values())
        groups.setdefault(key, (rule, holes, {}))[2][place] = Piece.of(value)
    made = {}
    for rule, holes, pieces in groups.values():
        if rule.added or rule.factor:
            raise CkptconvError(
                f"{rule.hub.text} is not put back: its values would be rounded", kind=Kind.UNSUPPORTED
            )
        if rule.rest:
            raise CkptconvError(f"{rule.hub.text} is not put back: {rule.rest}", kind=Kind.UNSUPPORTED)
        layouts = rule.layouts_for(config, holes)
        parts = to_trained_layout(layouts, [pieces[i] for i in range(len(pieces))])
        for name, piece in zip(_trained_names(rule, holes, len(parts)), parts, strict=True):
            made[name] = piece.plain
    return made


def _rule_back(family: Family, name: str, config: Config) -> tuple[Rule, int, dict[str, str]]:
    for rule in family.rules:
        for place, pattern in enumerate(rule.hub.names):
            holes = pattern.match(name)
            if holes is not None and (shifted := _shift(holes, config, -1)) is not None:
                return rule, place, shifted
    raise CkptconvError(
        f"the table of {family.name} has no entry for the Hub's tensor {name}", kind=Kind.UNSUPPORTED
    )


def _apply(
    group: Group[T],
    stored: list[tuple[str, T]],
    holes: dict[str, str],
    config: Config,
    known: dict[int, tuple[Layout, ...]],
) -> tuple[list[str], Pieces[T], list[tuple[str, T, str]]]:
    """Return the Hub's names, their tensors, and what the Hub has no name for: (stored name, part, reason).

    `stored` has the group's tensors in order, `holes` the Hub's layer numbers.
    """
    rule = group.rule
    first, _ = stored[0]
    pieces: Pieces[T] = [Piece.of(value) for _, value in stored]
    without_name: list[tuple[str, T, str]] = []
    if rule.rows is not None:
        wanted = _rows(rule.rows, config)
        if rule.instead is not None and pieces[0].shape[0] < wanted:
            return [rule.instead], pieces, []
        for i, (name, _) in enumerate(stored):
            pieces[i], rest = _cut_padding(name, pieces[i], wanted)
            without_name += [] if rest is None else [(name, rest, "vocabulary padding")]
    names = [pattern.fill(holes) for pattern in rule.hub.names]
    try:
        layouts = known.get(id(rule))
        if layouts is None:
            layouts = rule.layouts_for(config, group.holes)
            if rule.of_layer is None:
                known[id(rule)] = layouts
        made = to_hub_layout(layouts, pieces)
    except (CkptconvError, *_NO_NUMBERS) as error:
        raise CkptconvError(
            f"{first} does not have the layout that config.json implies",
            found=f"shape {list(pieces[0].shape)}; {error}",
            hint="pass the right model: --config DIR or --config org/name",
        ) from error
    if rule.rest:
        made, rest_of_it = made[: len(names)], made[len(names) :]
        without_name += [(first, piece.value, rule.rest) for piece in rest_of_it]
    if len(made) != len(names):
        raise CkptconvError(f"{len(made)} tensors cannot be named {rule.hub.text}", where=first)
    return names, made, without_name


def _rows(rows: Callable[[Config], int], config: Config) -> int:
    try:
        return rows(config)
    except _NO_NUMBERS as error:
        raise _no_numbers(error) from error


def _in_order(group: Group[T]) -> list[tuple[str, T]]:
    """Return the tensors of a group by place and number; a missing place or number is an error."""
    found = group.found
    if len(found) == 1 and len(group.rule.trained.names) == 1 and not group.rule.gathered:
        return list(found.values())
    if group.rule.reason:
        return list(found.values())
    numbers = sorted({gathered for _, gathered in found})
    places = range(len(group.rule.trained.names))
    wanted = [(place, number) for place in places for number in numbers]
    whole = all(number == (i,) for i, number in enumerate(numbers)) or numbers == [()]
    if not whole or len(wanted) != len(found):
        raise CkptconvError(
            f"some pieces needed for {group.rule.hub.text} are missing",
            found=", ".join(name for name, _ in list(found.values())[:6]),
            hint="the checkpoint holds some pieces of a fused tensor and not the others",
        )
    return [found[place] for place in wanted]


def _trained_names(rule: Rule, holes: dict[str, str], count: int) -> list[str]:
    patterns = rule.trained.names
    each, left = divmod(count, len(patterns))
    if left or len(rule.gathered) > 1:
        raise CkptconvError(f"{count} tensors cannot be named {rule.trained.text}")
    if not rule.gathered:
        return [pattern.fill(holes) for pattern in patterns]
    (hole,) = rule.gathered
    return [pattern.fill({**holes, hole: i}) for pattern in patterns for i in range(each)]


def _is_cut(value: object) -> bool:
    """Return True if a stored tensor has several chunks, because each rank holds a part of it."""
    return isinstance(value, View) and len(value.chunks) > 1


def _shift(holes: dict[str, str], config: Config, way: int) -> dict[str, str] | None:
    """Shift the number of an MTP layer to the Hub's (way 1), which continues after the last layer, or back (way -1)."""
    if "mtp" not in holes:
        return holes
    number = int(holes["mtp"]) + way * int(text_of(config).get("num_hidden_layers") or 0)
    return {**holes, "mtp": str(number)} if number >= 0 else None


def _cut_padding(name: str, piece: Piece[T], rows: int) -> tuple[Piece[T], T | None]:
    """Cut the rows beyond the config's vocabulary and return them too; a tensor with fewer rows is an error."""
    stored = piece.shape[0]
    if stored < rows:
        raise CkptconvError(
            f"{name} has fewer rows than the vocabulary",
            found=f"{stored:,}",
            wanted=f"vocab_size {rows:,}",
            hint="pass the right model: --config DIR or --config org/name",
        )
    if stored == rows:
        return piece, None
    value: Any = piece.value
    return Piece.of(narrow(value, 0, 0, rows)), narrow(value, 0, rows, stored - rows)
