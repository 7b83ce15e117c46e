"""verl's command lines from before it had `merge` and `test`: scripts/model_merger.py --backend fsdp --local_dir D."""

from __future__ import annotations

_LOCAL, _TEST = ("--local_dir", "--local-dir"), ("--test_hf_dir", "--test-hf-dir")


def with_command(words: list[str]) -> list[str]:
    """The words of a command line, with the command that verl's old form leaves out.

    The old form begins with a flag and has --local_dir. Its --test is a flag that goes with --test_hf_dir.
    """
    if not words or not words[0].startswith("-") or not _holds(words, _LOCAL):
        return words
    command = "test" if _holds(words, _TEST) else "merge"
    return [command, *(word for word in words if word != "--test")]


def _holds(words: list[str], flags: tuple[str, ...]) -> bool:
    return any(word.split("=", 1)[0] in flags for word in words)
