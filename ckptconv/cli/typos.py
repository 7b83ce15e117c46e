"""Flags that other tools have for what ours does, and the errors for words that a command does not accept."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from ckptconv.errors import CkptconvError, Kind

_OUT = ("", "OUT is the second argument, without a flag: ckptconv merge DIR OUT")
_DIR = ("", "the checkpoint is the first argument, without a flag: ckptconv {command} DIR")
_MEANT: dict[str, tuple[str, str]] = {  # a flag of another tool -> ours, and what to tell ("" for the flag alone)
    **dict.fromkeys(("--force", "-f", "--overwrite-output", "--replace", "--yes", "-y"), ("--overwrite", "")),
    **dict.fromkeys(("--output", "-o", "--out", "--output-dir", "--output-path", "--save-dir", "--dst", "--hf-path"), _OUT),
    **dict.fromkeys(("--input", "-i", "--input-dir", "--checkpoint", "--checkpoint-dir", "--ckpt", "--load", "--src"), _DIR),
    **dict.fromkeys(("--model", "--base-model", "--hf-model", "--reference-model"), ("--base", "")),
    **dict.fromkeys(("--tokenizer", "--tokenizer-path", "--hf-config", "--config-path", "--model-config"), ("--config", "")),
    **dict.fromkeys(("--bf16", "--bfloat16"), ("--dtype bfloat16", "")),
    **dict.fromkeys(("--fp16", "--half", "--float16"), ("--dtype float16", "")),
    **dict.fromkeys(("--fp32", "--float32"), ("--dtype float32", "")),
    **dict.fromkeys(("--torch-dtype", "--precision"), ("--dtype", "")),
    **dict.fromkeys(("--num-workers", "--threads", "-j", "--jobs", "--num-proc", "--thread-count"), ("--workers", "")),
    **dict.fromkeys(("--iteration", "--iter", "--ckpt-step", "--global-step", "--tag"), ("--step", "")),
    **dict.fromkeys(("--format", "--ckpt-format", "--checkpoint-format", "--framework"), ("--backend", "")),
    **dict.fromkeys(("--reference", "--ref", "--compare", "--with"), ("--against", "")),
    **dict.fromkeys(("--repo-id", "--hub", "--upload", "--push-to-hub"), ("--push", "")),
    **dict.fromkeys(("--branch", "--tag-name"), ("--revision", "")),
    **dict.fromkeys(("--trust", "--allow-code"), ("", "code of a checkpoint is never run, so that no flag allows it")),
    **dict.fromkeys(
        ("--safe-serialization", "--safetensors", "--safe"), ("", "omit it: ckptconv always writes safetensors")
    ),
    **dict.fromkeys(("--debug", "--traceback"), ("", "set the environment: CKPTCONV_DEBUG=1 ckptconv {command} ...")),
    "--no-overwrite": ("", "omit it: an existing OUT is kept unless --overwrite is given"),
    "--public": ("--no-private", ""),
}  # fmt: skip


def no_such_option(flag: str, command: str, known: Sequence[str]) -> CkptconvError:
    """The error for a flag that a command does not have, with the flag that was probably meant.

    Args:
        flag: what the user typed.
        command: the command's name.
        known: the flags of the command.
    """
    meant, told = _MEANT.get(flag, ("", ""))
    if meant and meant.split()[0] not in known:
        meant = ""
    if not meant and not told:
        meant = next(
            iter(get_close_matches(flag, [each for each in known if each.startswith("--")], 1, 0.75)), ""
        )
    return CkptconvError(
        f"{command} has no option {flag}",
        hint=f"did you mean {meant}?"
        if meant
        else told.format(command=command) or f"ckptconv {command} --help",
        kind=Kind.USAGE,
    )


def usage_error(error: Exception, command: str) -> CkptconvError | None:
    """The error for a command line that typer refuses, in the form that all our errors have.

    Args:
        error: what typer raised.
        command: the command's name, or "".

    Returns:
        The error, or None if `error` is not about the command line.
    """
    kinds = [kind.__name__ for kind in type(error).__mro__]  # typer has no public names for them
    if "UsageError" not in kinds or "NoArgsIsHelpError" in kinds:
        return None
    what, _, more = str(getattr(error, "format_message", error.__str__)()).partition(". ")
    hint = more or " ".join(("ckptconv", *([command] if command else []), "--help"))
    return CkptconvError(_small(what.rstrip(".")), hint=_small(hint), kind=Kind.USAGE)


def _small(text: str) -> str:
    """The text with a lower-case letter at its beginning."""
    return text[:1].lower() + text[1:]


def with_dashes(words: Sequence[str]) -> list[str]:
    """The words of a command line with `--max-shard-size` for `--max_shard_size`, as transformers and verl write flags."""
    changed: list[str] = []
    for number, word in enumerate(words):
        if word == "--":
            return [*changed, *words[number:]]
        name, equals, value = word.partition("=")
        changed.append(name.replace("_", "-") + equals + value if word.startswith("--") else word)
    return changed
