"""The user's choices for a merge; a record checks itself when it is created."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ckptconv.errors import CkptconvError, Kind
from ckptconv.plan.shards import in_bytes

Dtype = Literal["auto", "keep", "float32", "bfloat16", "float16", "fp32", "bf16", "fp16"]
LoraMode = Literal["merge", "adapter", "both"]
Layout = Literal["hub", "module"]
Mtp = Literal["keep", "drop"]

_SHORT = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}


@dataclass(frozen=True, slots=True)
class Options:
    """The user's choices for a merge.

    Args:
        dtype: "auto" (float32 masters get the config's dtype, the rest stays), "keep" (as stored), or the dtype of all
            floats: "float32", "bfloat16", "float16", also written "fp32", "bf16", "fp16".
        lora: "merge" adds LoRA tensors to the weights, "adapter" writes them as PEFT does, "both" does both. None decides
            by what is stored, and reports it.
        lora_alpha: LoRA's alpha, if no file states it.
        layout: whose names and layouts the tensors get: "hub", or "module" as in the training process.
        max_shard_size: the largest file, in bytes or as a text such as "5GB".
        mtp: whether multi-token prediction layers are written: "keep" or "drop".
        keep_config: whether config.json and tokenizer_config.json get no keys beyond the trainer's. By default they also
            get those that readers of the other transformers generation (4 or 5) need.

    Raises:
        CkptconvError: a value is not one of these, or two values contradict each other.

    Example:
        >>> Options(dtype="bf16").dtype
        'bfloat16'
    """

    dtype: Dtype = "auto"
    lora: LoraMode | None = None
    lora_alpha: float | None = None
    layout: Layout = "hub"
    max_shard_size: int | str = "5GB"
    mtp: Mtp = "keep"
    keep_config: bool = False

    def __post_init__(self) -> None:
        _one_of("dtype", self.dtype, get_args(Dtype))
        _one_of("lora", self.lora, (None, *get_args(LoraMode)))
        _one_of("layout", self.layout, get_args(Layout))
        _one_of("mtp", self.mtp, get_args(Mtp))
        object.__setattr__(self, "dtype", _SHORT.get(self.dtype, self.dtype))
        if not isinstance(self.keep_config, bool):
            raise CkptconvError(
                f"keep_config does not accept {self.keep_config}", wanted="True or False", kind=Kind.USAGE
            )
        in_bytes(self.max_shard_size)
        if self.lora_alpha is not None and not _is_positive(self.lora_alpha):
            raise CkptconvError(
                f"--lora-alpha does not accept {self.lora_alpha}",
                wanted="a positive number",
                kind=Kind.USAGE,
            )
        if self.lora == "adapter":
            for name, value, default in (("layout", self.layout, "hub"), ("mtp", self.mtp, "keep")):
                if value != default:
                    raise CkptconvError(
                        f"--{name} {value} is about the model, and --lora adapter writes only the adapter",
                        hint=f"omit one of --lora and --{name}",
                        kind=Kind.USAGE,
                    )


def options_of(options: Options | None, **choices: Any) -> Options:
    """The record of the user's choices, from a record or from keywords.

    Args:
        options: the record; None if there is none.
        choices: the fields of `Options` as keywords; None means the default.

    Raises:
        CkptconvError: a record is given together with keywords.
    """
    given = {name: value for name, value in choices.items() if value is not None}
    if options is None:
        return Options(**given)
    if given:
        raise CkptconvError(
            f"options are given together with {', '.join(given)}",
            hint="put them into the Options, or pass keywords only",
            kind=Kind.USAGE,
        )
    return options


def _is_positive(value: object) -> bool:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return is_number and math.isfinite(value) and value > 0  # type: ignore[arg-type,operator]


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if not isinstance(value, str | None) or value not in allowed:
        raise CkptconvError(
            f"--{name} does not accept {value}",
            wanted=", ".join(str(item) for item in allowed if item is not None),
            kind=Kind.USAGE,
        )
