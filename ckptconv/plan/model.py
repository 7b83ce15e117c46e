"""Plans the model, step by step: weights -> rename -> tie -> place LoRA -> dtypes -> lay out.

Each step takes the record that the step before returned and returns a small record; nothing is changed in place. Every
record names what its step left out (`left`) and what the user must know (`notes`); `plan_model` adds these up.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models import config_keys, lora
from ckptconv.models import quantised as names
from ckptconv.models.config import corrected
from ckptconv.plan import dtype_policy, quantised, shards
from ckptconv.plan.fit import require_fit
from ckptconv.plan.ledger import used_by
from ckptconv.plan.options import Options
from ckptconv.plan.records import Filled, Left, Output, Part
from ckptconv.plan.rename import rename
from ckptconv.plan.stored import Stored
from ckptconv.plan.tied import Equal, Tied, same, tie
from ckptconv.plan.weights import Weights, own_weights
from ckptconv.tensors.checkpoint import Checkpoint

if TYPE_CHECKING:
    from ckptconv.models.lora.place import Placed


def plan_model(
    stored: Stored, config: dict[str, Any] | None, options: Options, base: Checkpoint | None, equal: Equal
) -> tuple[Part, Weights]:
    """Plan the model's safetensors files and its config.json.

    Args:
        stored: the checkpoint's tensors.
        config: the model's config.json; None if it is not known.
        options: the user's choices.
        base: the model into which LoRA is merged, or that frozen parameters are taken from; None if none is given.
        equal: compares two stored tensors; see `tied.tie`.

    Returns:
        The part of the plan, and the weights that it started from.

    Raises:
        CkptconvError: the tensors do not become the model that the config describes.
    """
    frozen = base if not stored.parts.factors and not stored.parts.tokens else None
    base = None if frozen is not None else base
    if base is None:
        weights = own_weights(stored, config)
    else:
        stored, weights = _weights_of_base(stored, config, base, equal)
    stated = lora.check_stated(stored.parts, stored.lora, weights.tensors.keys(), config or {})
    renamed = rename(weights, options)
    tied = (
        tie(renamed.tensors, renamed.config, equal) if base is None else Tied(renamed.tensors, renamed.config)
    )
    if frozen is not None:
        tied, weights = _complete(tied, weights, frozen)
    placed, unplaced = _place(stored, weights, tied, base is not None)
    tokens, twins = _tokens(stored.parts, (*weights.left, *tied.left), equal)
    updated = [each.weight for each in placed]
    held = [name for name, fill in tied.tensors.items() if fill.trained[0] in weights.held]
    plain = quantised.dequantise(tied.tensors, updated, held, tied.config or {})
    filled = _updated(plain.tensors, placed, tokens, stored, options)
    naming = stored.checkpoint.naming
    typed = dtype_policy.typed(filled, tied.config, options.dtype, naming, weights.dtypes)
    outputs = {
        name: Output(name, fill.shape, typed.dtypes[name], fill.source, tuple(map(stored.name, fill.trained)))
        for name, fill in filled.items()
    }
    outputs, repeated = _repeat(outputs, renamed.copies)
    config, corrections, added = _checked(tied.config, outputs, stored.checkpoint, options)
    part = Part(
        outputs=outputs,
        files=shards.shards(outputs, options.max_shard_size) if outputs else (),
        used=used_by([fill.source for fill in filled.values()], weights.shared),
        left=(*weights.left, *renamed.left, *tied.left, *unplaced, *plain.left, *twins),
        config=config,
        notes=(*stated, *weights.notes, *renamed.notes, *tied.notes, *plain.notes, *repeated, *corrections),
        dtype_summary=typed.sentence,
        config_summary=added,
        rules=renamed.rules,
    )
    return part, weights


def _weights_of_base(
    stored: Stored, config: dict[str, Any] | None, base: Checkpoint, equal: Equal
) -> tuple[Stored, Weights]:
    """The adapter under the base model's names, and the base model's weights."""
    from ckptconv.plan.align import align
    from ckptconv.plan.onto_base import weights_of_base

    parts, base = align(stored.parts, base, config or {})
    stored = stored._replace(parts=parts)
    return stored, weights_of_base(stored, config, base, equal)


def _complete(tied: Tied, weights: Weights, base: Checkpoint) -> tuple[Tied, Weights]:
    """What the checkpoint lacks, from the base model; the ledger counts only what is taken."""
    from ckptconv.plan.complete import completed

    tensors, added, note = completed(tied.tensors, tied.config, base)
    return (
        tied._replace(tensors=tensors),
        weights._replace(stored=added, notes=(*weights.notes, note)),
    )


def _place(
    stored: Stored, weights: Weights, tied: Tied, on_base: bool
) -> tuple[tuple[Placed, ...], tuple[Left, ...]]:
    """Place every LoRA update at the final name of the weight that it belongs to; the elements that have no place."""
    parts, naming, config = stored.parts, stored.checkpoint.naming, tied.config or {}
    if not parts.factors:
        return (), ()
    from ckptconv.plan.placing import placed_in, placed_on  # LoRA's records: imported where there is LoRA

    try:
        found = (
            placed_on(tied.tensors, parts, naming, stored.lora, config)
            if on_base
            else placed_in(tied.tensors, weights.tensors, parts, weights.naming, stored.lora, config)
        )
        return found.placed, tuple(found.left_out)
    except CkptconvError:
        for (
            each
        ) in parts.factors:  # packed codes have other names and shapes than the weight that they encode
            for module in (each.module, *each.parameters):
                quantised.refuse(module, tied.tensors.keys(), config)
        raise


def _tokens(
    parts: lora.Separated, left: Sequence[Left], equal: Equal
) -> tuple[tuple[lora.Tokens, ...], tuple[Left, ...]]:
    """The trained token rows, without those of a head that is not written because it equals its embedding."""
    dropped = {name for name, _, reason in left if reason.startswith("tied")}
    kept = tuple(each for each in parts.tokens if each.weight not in dropped)
    twins: list[Left] = []
    for each in parts.tokens:
        others = [
            other.rows[1] for other in parts.tokens if other.is_stated and other.indices == each.indices
        ]
        if not each.is_stated and not any(same(rows, each.rows[1], equal) for rows in others):
            raise CkptconvError(
                f"which rows of its weight {each.rows[0]} replaces is not known",
                wanted="trainable_token_indices in adapter_config.json, or the rows of the weight that it is tied to",
                hint="merge it with PEFT",
                kind=Kind.UNSUPPORTED,
            )
        if each.weight in dropped:
            name, rows = each.rows
            if not any(other.indices == each.indices and same(other.rows[1], rows, equal) for other in kept):
                raise CkptconvError(
                    f"the trained tokens of {each.module} differ from the embedding's, which it is tied to",
                    hint="merge it with PEFT",
                )
            twins.append((name, rows, "tied: equal to the trained tokens of the embedding"))
    return kept, tuple(twins)


def _updated(
    named: Filled,
    placed: tuple[Placed, ...],
    tokens: Sequence[lora.Tokens],
    stored: Stored,
    options: Options,
) -> Filled:
    """The weights with LoRA's updates and with the trained rows of tokens."""
    if not placed and not tokens:
        return named
    from ckptconv.plan.fuse import fuse, rewrite

    return rewrite(fuse(named, placed, stored.lora, options.lora_alpha), tokens)


def _repeat(
    outputs: dict[str, Output], copies: Mapping[str, str]
) -> tuple[dict[str, Output], tuple[str, ...]]:
    """Add the outputs that the Hub's model has twice, with the final source of the output that each repeats."""
    written = {name: of for name, of in copies.items() if of in outputs}
    twice = {name: outputs[of]._replace(name=name, repeats=of) for name, of in written.items()}
    note = f"written twice, as the Hub's model has them: {', '.join(written)}"
    return {**outputs, **twice}, (note,) if written else ()


def _checked(
    config: dict[str, Any] | None, outputs: Mapping[str, Output], checkpoint: Checkpoint, options: Options
) -> tuple[dict[str, Any] | None, tuple[str, ...], str]:
    """The config as it will be written, after a check that it describes these outputs; the notes; what is added to it."""
    if config is None:
        return None, (), ""
    shapes = {name: output.shape for name, output in outputs.items()}
    config, dropped = _without_quantiser(config, outputs)
    most = dtype_policy.most((output.dtype, output.nbytes) for output in outputs.values())
    notes = [*dropped]
    config = corrected(config, shapes, most, notes)
    dtypes = {name: output.dtype for name, output in outputs.items()}
    require_fit(config, shapes, checkpoint.root, notes, dtypes)
    both = config_keys.for_both(config, tuple(outputs))
    if options.keep_config:
        return config, (*notes, *both.disputes), ""
    return both.config, (*notes, *both.disputes), both.summary


def _without_quantiser(
    config: dict[str, Any], outputs: Mapping[str, Output]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """Remove the quantisation settings if no output is quantised, since readers would look for scales."""
    method = names.method_of(config)
    if not method or names.any_quantised((name, output.dtype) for name, output in outputs.items()):
        return config, ()
    note = f"quantization_config ({method}) is dropped from config.json: no quantised tensor is written"
    return names.without(config), (note,)
