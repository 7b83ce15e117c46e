"""What the model does: a prompt through transformers, the logits, and the text that follows by taking the likeliest token.

torch and transformers are imported in here only. Both sides are loaded one after the other, in the target's dtype, from
safetensors files: what a trainer's ranks or torch.save wrote is merged into a temporary folder first. A model's own
code is never run.
"""

from __future__ import annotations

import gc
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ckptconv.commands.verify.expected import NotChecked, class_of, first_line, quiet
from ckptconv.commands.verify.records import Layer, Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan import Dtype
from ckptconv.tensors.dtypes import is_float

_ALONE = "transformers loads it, and a forward pass over the prompt gives finite logits"
_AGAINST = "both models give the same logits, up to rounding, and the same text for the prompt"
_TOKENS = 16  # of greedy text
_IDS = 12  # of a prompt where there is no tokenizer
_STEPS = (
    8  # of a dtype at the largest logit: the same weights in other places of memory may be that far apart
)


@dataclass(slots=True)
class Ran:
    """The output of one model.

    Args:
        ids: the token ids of the prompt.
        logits: a float32 numpy array, (positions, vocabulary or features).
        text: the token ids of the greedy continuation; () without a language model head.
        dtype: the dtype in which the model ran.
        step: the distance between 1 and the next number of that dtype.
        absent: weights that the folder lacks.
    """

    ids: list[int]
    logits: Any
    text: tuple[int, ...]
    dtype: str
    step: float
    absent: tuple[str, ...]


def behaviour_layer(
    ours: Side,
    theirs: Side | None,
    prompt: str,
    device: str,
    tolerant: bool,
    on_phase: Callable[[str], None] | None,
) -> Layer:
    """Layer behaviour. tolerant: logits may differ by more than rounding, if they lead to the same tokens.

    Raises CkptconvError for a device that is not there, and where a checkpoint cannot be merged.
    """
    proves = _ALONE if theirs is None else _AGAINST
    _check_device(device)
    runner = _Runner(prompt, device, on_phase or (lambda _: None))
    try:
        first = runner.run(ours, theirs)
        second = None if theirs is None else runner.run(theirs, ours)
    except _Unanswered as why:
        if why.wrong:
            return Layer("behaviour", False, proves, "it cannot be run", (Problem(why.name, why.reason),))
        return Layer("behaviour", None, "", f"skipped: {why.reason}")
    return _alone(first, runner) if second is None else _compared(first, second, runner, tolerant)


class _Unanswered(Exception):
    """A model could not be run. `wrong` is True if the model itself is at fault."""

    def __init__(self, reason: str, name: str = "", wrong: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.name, self.wrong = reason, name, wrong


class _Runner:
    """Runs both sides on one device with the same token ids of the prompt."""

    def __init__(self, prompt: str, device: str, on_phase: Callable[[str], None]) -> None:
        self._prompt, self._device, self._on_phase = prompt, device, on_phase
        self._ids: list[int] = []
        self._dtype: Any = "auto"
        self.tokenizer: Any = None
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    def run(self, side: Side, other: Side | None) -> Ran:
        """Load a side, run it and let go of it. other: whose dtype, and tokenizer, serve where this one has none."""
        with self._folder(side, other) as folder:
            config = side.config or {}
            model, absent = self._load(folder, side)
            try:
                if not self._ids:
                    self._ids = self._encode([folder, *([other.checkpoint.assets] if other else [])], config)
                else:
                    self._compare_tokenizer(folder)
                return self._forward(model, absent)
            finally:
                del model
                gc.collect()

    @contextmanager
    def _folder(self, side: Side, other: Side | None) -> Iterator[Path]:
        """A folder that transformers can load: the side's own, or a merge of it."""
        if side.is_folder and not side.is_adapter:
            yield side.checkpoint.root
            return
        from ckptconv.commands.merge.run import merge
        from ckptconv.plan import Options

        if side.is_adapter and side.beside.base is None:
            raise _Unanswered("an adapter is run with its base model: name it with --base")
        options = Options(dtype=_dtype_for(side, other), lora="merge" if side.is_adapter else None)
        with tempfile.TemporaryDirectory(prefix="ckptconv-") as made:
            self._on_phase(f"{side.path} into a temporary folder")
            config, base = side.beside.config, side.beside.base
            merge(side.source, Path(made) / "model", options=options, config=config, base=base)
            yield Path(made) / "model"

    def _load(self, folder: Path, side: Side) -> tuple[Any, tuple[str, ...]]:
        import transformers

        from ckptconv.publish import assets

        config = assets.read_config(folder) or side.config or {}
        if config.get("quantization_config"):
            raise _Unanswered("the model is quantised, and its own kernels are needed to run it")
        name = class_of(config)
        if isinstance(name, NotChecked):
            raise _Unanswered(name.why)
        if isinstance(name, Problem):
            raise _Unanswered(name.what, name.name, wrong=True)
        self._on_phase(f"{side.path} with transformers on {self._device}")
        try:
            with quiet(transformers):
                model, info = getattr(transformers, name).from_pretrained(
                    folder,
                    dtype=self._dtype,
                    attn_implementation="eager",
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=True,
                    output_loading_info=True,
                )
                model = model.to(self._device).eval()
        except ImportError as error:
            raise _Unanswered(
                f"a library that the model needs is not installed: {first_line(error)}"
            ) from error
        except Exception as error:  # whatever a class makes of its weights and config
            raise _Unanswered(
                f"transformers cannot load it: {first_line(error)}", name, wrong=True
            ) from error
        with_experts = getattr(model, "set_experts_implementation", None)
        if with_experts is not None and self._device == "cpu":
            with_experts("eager")
        self._dtype = model.dtype
        return model, tuple(sorted(info["missing_keys"]))

    def _encode(self, folders: list[Path | None], config: Mapping[str, Any]) -> list[int]:
        for folder in folders:
            tokenizer = None if folder is None else _tokenizer(folder)
            ids = tokenizer(self._prompt)["input_ids"] if tokenizer is not None else []
            if ids:
                self.tokenizer = tokenizer
                return list(ids)
        self.notes.append("no tokenizer: the prompt is a fixed row of tokens")
        size = _vocabulary(config)
        return [(7 * n + 3) % size for n in range(_IDS)]

    def _compare_tokenizer(self, folder: Path) -> None:
        tokenizer = _tokenizer(folder) if self.tokenizer is not None else None
        if tokenizer is not None and list(tokenizer(self._prompt)["input_ids"]) != self._ids:
            problem = "gives other tokens for the prompt than the reference's; both models got these"
            self.problems.append(Problem("tokenizer", problem))

    def _forward(self, model: Any, absent: tuple[str, ...]) -> Ran:
        import torch

        self._on_phase(f"{len(self._ids)} tokens of prompt, {_TOKENS} more")
        ids = torch.tensor([self._ids], device=model.device)
        try:
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
                text: list[int] = []
                while model.can_generate() and len(text) < _TOKENS:
                    last = model(input_ids=ids).logits[0, -1] if text else logits[-1]
                    text.append(int(last.argmax()))
                    ids = torch.cat([ids, torch.tensor([[text[-1]]], device=ids.device)], 1)
        except Exception as error:  # a model that wants more than tokens
            raise _Unanswered(
                f"{type(model).__name__} does not run on tokens alone: {first_line(error)}"
            ) from error
        values = logits.float().cpu().numpy()
        return Ran(
            self._ids,
            values.reshape(-1, values.shape[-1]),
            tuple(text),
            str(model.dtype).split(".")[-1],
            torch.finfo(model.dtype).eps,
            absent,
        )

    def decoded(self, text: tuple[int, ...]) -> str:
        """Token ids as text."""
        if self.tokenizer is not None:
            return repr(self.tokenizer.decode(text))
        return "tokens " + " ".join(map(str, text))


def _alone(ran: Ran, runner: _Runner) -> Layer:
    import numpy as np

    problems = _problems(ran, "")
    notes = [*runner.notes]
    found = f"{len(ran.logits)} × {ran.logits.shape[-1]:,} logits in {ran.dtype}"
    if ran.text and np.isfinite(ran.logits).all() and len(ran.ids) > 1:
        loss = -_log_softmax(ran.logits)[np.arange(len(ran.ids) - 1), ran.ids[1:]].mean()
        with np.errstate(over="ignore"):
            guess = f"{np.exp(loss):,.1f}"
        found += f", perplexity of the prompt {guess}"
        notes.append(f"chance has a perplexity of {ran.logits.shape[-1]:,}, the size of the vocabulary")
    if ran.text:
        notes.append(f"greedy: {runner.decoded(ran.text)}")
    return Layer("behaviour", not problems, _ALONE, found, tuple(problems), tuple(notes))


def _compared(ours: Ran, theirs: Ran, runner: _Runner, tolerant: bool) -> Layer:
    import numpy as np

    problems = [*runner.problems, *_problems(ours, ""), *_problems(theirs, "the reference's ")]
    notes = [*runner.notes]
    if ours.logits.shape != theirs.logits.shape:
        problem = f"shape {ours.logits.shape}, the reference's {theirs.logits.shape}"
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
        problem = f"leaves the reference's at token {apart + 1} of {len(ours.text)}"
        problems.append(
            Problem("greedy text", problem, f"{runner.decoded(ours.text)} / {runner.decoded(theirs.text)}")
        )
    elif ours.text:
        notes.append(f"both: {runner.decoded(ours.text)}")
    return Layer("behaviour", not problems, _AGAINST, found, tuple(problems), tuple(notes))


def _problems(ran: Ran, whose: str) -> list[Problem]:
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


def _dtype_for(side: Side, other: Side | None) -> Dtype:
    """What a trainer's tensors are merged in: the dtype of the model folder that they are compared with."""
    wanted = side if not side.as_stored else other
    if wanted is None or wanted.as_stored:
        return "auto"
    counts = Counter(output.dtype for output in wanted.tensors.values() if is_float(output.dtype))
    most = counts.most_common(1)[0][0] if counts else ""
    # "auto" keeps what the model keeps in float32.
    return "float32" if most == "float32" else "float16" if most == "float16" else "auto"


def _tokenizer(folder: Path) -> Any:
    """None where there is none that loads without code of its own."""
    import transformers

    if not any(
        (folder / name).is_file() for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")
    ):
        return None
    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # it is no part of the question: fixed tokens do
        return None


def _vocabulary(config: Mapping[str, Any]) -> int:
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int) and part["vocab_size"] > 0:
            return int(part["vocab_size"])
    return 100


def _check_device(device: str) -> None:
    import torch

    try:
        torch.empty(1, device=device)
    except Exception as error:  # torch says it in one of several ways
        raise CkptconvError(
            f"torch has no device {device} here",
            found=first_line(error),
            wanted="cpu, cuda, cuda:0, mps",
            kind=Kind.ENVIRONMENT,
        ) from error
