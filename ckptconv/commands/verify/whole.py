"""Layer model: the tensors against ckptconv's own list for the class in config.json, as merge compares them; no torch."""

from __future__ import annotations

from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import CkptconvError
from ckptconv.models import facts, quantised
from ckptconv.plan import examined, why_unchecked

_NAME = "model"
_PROVES = "the tensors are those of the class in config.json: names, layers, experts, shapes"


def model_layer(side: Side) -> Layer:
    """Compare a side with the list of its class. An adapter, or a class without a list, cannot be compared.

    Args:
        side: The side; its dtypes matter where it is quantised.
    """
    if side.is_adapter or side.config is None:
        return Layer(
            _NAME, None, _PROVES, "skipped: an adapter" if side.is_adapter else "skipped: no config.json"
        )
    if why := why_unchecked(side.config):
        return Layer(_NAME, None, _PROVES, f"skipped: {why}")
    shapes = {name: output.shape for name, output in side.tensors.items()}
    dtypes = {name: output.dtype for name, output in side.tensors.items()}
    named = facts.named_architectures(side.config)
    architecture = named[0] if named else facts.default_architecture(side.config)
    notes: list[str] = []
    try:
        misfit = examined(side.config, shapes, side.checkpoint.root, notes, dtypes)
    except CkptconvError as error:  # config.json contradicts itself
        found = " ".join(filter(None, (error.found, f"(expected {error.wanted})" if error.wanted else "")))
        return Layer(_NAME, False, _PROVES, error.what, (Problem("config.json", found),), tuple(notes))
    problems = []
    method = quantised.method_of(side.config)
    if method and not quantised.any_quantised(dtypes.items()):
        what = f"has a quantization_config ({method}), and no quantised tensor is stored"
        problems.append(Problem("config.json", what))
    problems += [Problem(name, f"missing: {architecture} has it") for name in misfit.missing]
    problems += [Problem(name, f"{architecture} has no such tensor") for name in misfit.foreign]
    problems += [
        Problem(name, f"has {size:,}, and config.json says {key} {stated:,}")
        for name, key, stated, size in misfit.wrong
    ]
    return Layer(
        _NAME,
        not problems,
        _PROVES,
        f"{len(shapes):,} tensors of {architecture}",
        tuple(problems),
        tuple(notes),
    )


def beside_a_reference(side: Side, layers: list[Layer]) -> list[Layer]:
    """The layer model, where it tells more than the comparison with a reference.

    A reference may lack the same tensors. The layer is omitted where it passes, and where names or shapes differ already.
    """
    if side.is_adapter or any(layer.ok is False for layer in layers if layer.name in ("names", "shapes")):
        return []
    found = model_layer(side)
    return [] if found.ok else [found]


def beside_the_class(side: Side, layers: list[Layer]) -> list[Layer]:
    """The layer model next to transformers' own class, where config.json contradicts itself or needs a person's judgement.

    transformers builds some configs that merge refuses: it reads one of two statements. The layer is omitted where another
    one shows the same.
    """
    if side.is_adapter or side.planned or any(layer.ok is False or layer.name == _NAME for layer in layers):
        return []
    found = model_layer(side)
    return [found] if found.ok is False or (found.ok and found.notes) else []
