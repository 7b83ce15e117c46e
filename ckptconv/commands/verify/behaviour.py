"""Layer behaviour: the model gives finite logits for a prompt, or the same logits and text as the reference."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptconv.commands.verify.model_runner import Ran, Runner, Unanswered, check_device
from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side

_ALONE = "transformers loads it, and a forward pass over the prompt gives finite logits"
_AGAINST = "both models give the same logits, up to rounding, and the same text for the prompt"
# The same weights may give logits that differ by this many steps of the dtype at the largest logit, since kernels choose
# their order of summation by the addresses of the weights.
_STEPS = 8


def behaviour_layer(
    ours: Side,
    theirs: Side | None,
    prompt: str,
    device: str,
    tolerant: bool,
    on_phase: Callable[[str], None] | None,
    python: str | Path | None = None,
) -> list[Layer]:
    """Run one side, or both, and compare them.

    Args:
        ours: the target.
        theirs: the reference; None if the target is checked on its own.
        prompt: the text to run.
        device: where to run it, as torch names it.
        tolerant: the logits may differ by more than rounding if they lead to the same tokens.
        on_phase: called with a sentence when a new phase begins.
        python: the interpreter of another environment in which the target is run as well.

    Raises:
        CkptconvError: torch has no such device, a checkpoint cannot be merged, or `python` cannot run a model.
    """
    proves = _ALONE if theirs is None else _AGAINST
    check_device(device)
    runner = Runner(prompt, device, on_phase or (lambda _: None))
    try:
        first = runner.run(ours, theirs)
        second = None if theirs is None else runner.run(theirs, ours)
    except Unanswered as why:
        if why.wrong:
            return [Layer("behaviour", False, proves, "it cannot be run", (Problem(why.name, why.reason),))]
        return [Layer("behaviour", None, "", f"skipped: {why.reason}")]
    layers = [_alone(first, runner) if second is None else compared(first, second, runner, tolerant)]
    if python is not None:
        from ckptconv.commands.verify.elsewhere import elsewhere_layer

        layers.append(elsewhere_layer(ours, first, runner, prompt, python, on_phase))
    return layers


def _alone(ran: Ran, runner: Runner) -> Layer:
    """The layer for a target without a reference: finite logits, and the prompt's perplexity as a note."""
    import numpy as np

    problems = _problems(ran, "")
    notes = [*runner.notes]
    found = f"{len(ran.logits)} × {ran.logits.shape[-1]:,} logits in {ran.dtype}"
    if ran.text and np.isfinite(ran.logits).all() and len(ran.ids) > 1:
        loss = -_log_softmax(ran.logits)[np.arange(len(ran.ids) - 1), ran.ids[1:]].mean()
        with np.errstate(over="ignore"):
            guess = f"{np.exp(loss):,.1f}"
        found += f", perplexity of the prompt {guess}"
        notes.append(
            f"a uniform guess has a perplexity of {ran.logits.shape[-1]:,}, the size of the vocabulary"
        )
    if ran.text:
        notes.append(f"greedy: {runner.decoded(ran.text)}")
    return Layer("behaviour", not problems, _ALONE, found, tuple(problems), tuple(notes))


def compared(
    ours: Ran, theirs: Ran, runner: Runner, tolerant: bool, whose: str = "the reference's "
) -> Layer:
    """The layer for two sides: the logits agree up to rounding, and the greedy continuations are equal."""
    import numpy as np

    problems = [*runner.problems, *_problems(ours, ""), *_problems(theirs, whose)]
    notes = [*runner.notes]
    if ours.logits.shape != theirs.logits.shape:
        problem = f"shape {ours.logits.shape}, {whose}{theirs.logits.shape}"
        return Layer("behaviour", False, _AGAINST, "other logits", (*problems, Problem("logits", problem)))
    with np.errstate(invalid="ignore"):
        delta = np.abs(ours.logits - theirs.logits)
    largest, scale = float(np.nanmax(delta)), float(np.nanmax(np.abs(theirs.logits)))
    rounding = scale * _STEPS * ours.step
    likeliest = ours.logits.argmax(-1) == theirs.logits.argmax(-1)
    agree = f"{int(likeliest.sum())} of {len(likeliest)} likeliest tokens agree"
    pairs = zip(ours.text, theirs.text, strict=True)
    apart = next((n for n, (mine, other) in enumerate(pairs) if mine != other), None)
    found = f"logits differ by up to {largest:.3g} (the largest is {scale:.3g})"
    if np.array_equal(ours.logits, theirs.logits):
        found = "logits equal bit for bit"
    elif largest <= rounding:
        found += ", no more than rounding"
    found += f" in {ours.dtype}, {agree}"
    if not (largest <= rounding or tolerant) or not likeliest.all():
        problems.append(Problem("logits", f"differ by up to {largest:.3g}, {agree}"))
    if apart is not None:
        problem = f"differs from {whose}from token {apart + 1} of {len(ours.text)} on"
        problems.append(
            Problem("greedy text", problem, f"{runner.decoded(ours.text)} / {runner.decoded(theirs.text)}")
        )
    elif ours.text:
        notes.append(f"both: {runner.decoded(ours.text)}")
    return Layer("behaviour", not problems, _AGAINST, found, tuple(problems), tuple(notes))


def _problems(ran: Ran, whose: str) -> list[Problem]:
    """Missing weights, and logits that are not finite. `whose` is "" or "the reference's "."""
    import numpy as np

    problems = [
        Problem(
            name,
            f"{whose}model was loaded without it: missing from the folder, so transformers initialised it randomly",
        )
        for name in ran.absent
    ]
    bad = int(np.count_nonzero(~np.isfinite(ran.logits)))
    if bad:
        problems.append(
            Problem("logits", f"{bad:,} of {whose or 'the '}{ran.logits.size:,} logits are NaN or Inf")
        )
    return problems


def _log_softmax(values: Any) -> Any:
    import numpy as np

    shifted = values.astype(np.float64) - values.max(-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
