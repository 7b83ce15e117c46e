"""Runs a prompt through one model after another with transformers, for the layer behaviour.

Only this module imports torch and transformers to run a model. The models are loaded in the target's dtype from
safetensors files: rank files and torch.save files are merged into a temporary folder first. Code that a model folder brings
is never run.
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
from ckptconv.commands.verify.records import Problem
from ckptconv.commands.verify.sides import Side
from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan import Dtype
from ckptconv.tensors.dtypes import is_float
from ckptconv.tensors.look import is_file

_TOKENS = 16  # tokens of the greedy continuation
_IDS = 12  # tokens of the prompt if there is no tokenizer


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


class Unanswered(Exception):
    """A model could not be run. `wrong` is True if the model itself is at fault."""

    def __init__(self, reason: str, name: str = "", wrong: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.name, self.wrong = reason, name, wrong


class Runner:
    """Runs both sides on one device with the same token ids of the prompt.

    Args:
        prompt: the text to run.
        device: where to run it, as torch names it.
        on_phase: called with a sentence when a new phase begins.

    Attributes:
        tokenizer: the first tokenizer that encoded the prompt; None if there is none.
        notes: findings that are not wrong.
        problems: what is wrong with the tokenizers.
    """

    def __init__(self, prompt: str, device: str, on_phase: Callable[[str], None]) -> None:
        self._prompt, self._device, self._on_phase = prompt, device, on_phase
        self._ids: list[int] = []
        self._dtype: Any = "auto"
        self.tokenizer: Any = None
        self.notes: list[str] = []
        self.problems: list[Problem] = []

    def run(self, side: Side, other: Side | None) -> Ran:
        """Load a side, run it and free it.

        Args:
            side: the side to run.
            other: the other side, whose dtype and tokenizer are used if this side has none.

        Raises:
            Unanswered: the side cannot be run.
        """
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
        """Yield a folder that transformers can load: the side's own, or a temporary one that it is merged into."""
        if side.is_folder and not side.is_adapter:
            yield side.checkpoint.root
            return
        from ckptconv.commands.merge.run import merge
        from ckptconv.plan import Options

        if side.is_adapter and side.beside.base is None:
            raise Unanswered("an adapter is run with its base model: name it with --base")
        options = Options(dtype=_dtype_for(side, other), lora="merge" if side.is_adapter else None)
        with tempfile.TemporaryDirectory(prefix="ckptconv-") as made:
            self._on_phase(f"{side.path} into a temporary folder")
            config, base = side.beside.config, side.beside.base
            merge(side.source, Path(made) / "model", options=options, config=config, base=base)
            yield Path(made) / "model"

    def _load(self, folder: Path, side: Side) -> tuple[Any, tuple[str, ...]]:
        """The model, and the names of the weights that the folder lacks."""
        import transformers

        from ckptconv.publish import assets

        config = assets.read_config(folder) or side.config or {}
        if config.get("quantization_config"):
            raise Unanswered("the model is quantised, and its own kernels are needed to run it")
        name = class_of(config)
        if isinstance(name, NotChecked):
            raise Unanswered(name.why)
        if isinstance(name, Problem):
            raise Unanswered(name.what, name.name, wrong=True)
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
            raise Unanswered(
                f"a library that the model needs is not installed: {first_line(error)}"
            ) from error
        except Exception as error:  # each class raises its own errors for its weights and config
            raise Unanswered(f"transformers cannot load it: {first_line(error)}", name, wrong=True) from error
        with_experts = getattr(model, "set_experts_implementation", None)
        if with_experts is not None and self._device == "cpu":
            with_experts("eager")
        self._dtype = model.dtype
        return model, tuple(sorted(info["missing_keys"]))

    def _encode(self, folders: list[Path | None], config: Mapping[str, Any]) -> list[int]:
        """The prompt's token ids by the first folder's tokenizer that gives any; fixed ids if no folder has one."""
        for folder in folders:
            tokenizer = None if folder is None else _tokenizer(folder)
            ids = tokenizer(self._prompt)["input_ids"] if tokenizer is not None else []
            if ids:
                self.tokenizer = tokenizer
                return list(ids)
        self.notes.append("no tokenizer: the prompt is a fixed sequence of tokens")
        size = _vocabulary(config)
        return [(7 * n + 3) % size for n in range(_IDS)]

    def _compare_tokenizer(self, folder: Path) -> None:
        """Report a tokenizer that encodes the prompt differently from the first side's."""
        tokenizer = _tokenizer(folder) if self.tokenizer is not None else None
        if tokenizer is not None and list(tokenizer(self._prompt)["input_ids"]) != self._ids:
            problem = "encodes the prompt differently than the reference's; both models ran on the target's token ids"
            self.problems.append(Problem("tokenizer", problem))

    def _forward(self, model: Any, absent: tuple[str, ...]) -> Ran:
        """Compute the prompt's logits and the greedy continuation."""
        import torch

        self._on_phase(f"{len(self._ids)} tokens of the prompt and {_TOKENS} new ones")
        ids = torch.tensor([self._ids], device=model.device)
        try:
            with torch.no_grad():
                logits = model(input_ids=ids).logits[0]
                text: list[int] = []
                while model.can_generate() and len(text) < _TOKENS:
                    last = model(input_ids=ids).logits[0, -1] if text else logits[-1]
                    text.append(int(last.argmax()))
                    ids = torch.cat([ids, torch.tensor([[text[-1]]], device=ids.device)], 1)
        except Exception as error:  # a model that needs more than token ids
            raise Unanswered(
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


def _dtype_for(side: Side, other: Side | None) -> Dtype:
    """The dtype policy for merging a trainer's checkpoint: the dtype of the model folder that it is compared with."""
    wanted = side if not side.as_stored else other
    if wanted is None or wanted.as_stored:
        return "auto"
    counts = Counter(output.dtype for output in wanted.tensors.values() if is_float(output.dtype))
    most = counts.most_common(1)[0][0] if counts else ""
    # "auto" keeps what the model keeps in float32.
    return "float32" if most == "float32" else "float16" if most == "float16" else "auto"


def _tokenizer(folder: Path) -> Any:
    """The folder's tokenizer; None if it has none, or none that loads without running code from the folder."""
    import transformers

    if not any(is_file(folder / name) for name in ("tokenizer.json", "tokenizer_config.json", "vocab.json")):
        return None
    try:
        with quiet(transformers):
            return transformers.AutoTokenizer.from_pretrained(
                folder, local_files_only=True, trust_remote_code=False
            )
    except Exception:  # the tokenizer is not what is checked, and fixed token ids are enough
        return None


def _vocabulary(config: Mapping[str, Any]) -> int:
    """The config's vocab_size; 100 if it states none."""
    for part in (config, config.get("text_config")):
        if isinstance(part, Mapping) and isinstance(part.get("vocab_size"), int) and part["vocab_size"] > 0:
            return int(part["vocab_size"])
    return 100


def check_device(device: str) -> None:
    """Raise a CkptconvError if torch has no such device."""
    import torch

    try:
        torch.empty(1, device=device)
    except Exception as error:  # torch raises several types for a missing device
        raise CkptconvError(
            f"torch has no device {device} here",
            found=first_line(error),
            wanted="cpu, cuda, cuda:0, mps",
            kind=Kind.ENVIRONMENT,
        ) from error
