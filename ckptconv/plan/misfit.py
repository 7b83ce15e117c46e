"""How planned tensors differ from the class that config.json names, and the refusal that reports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from ckptconv.errors import CkptconvError, Kind


class NotTheModel(CkptconvError):
    """The planned tensors are not those of the class that config.json names.

    The kind is INCOMPLETE where some are missing and nothing else is wrong.
    """


@dataclass
class Misfit:
    """What is wrong. Each list holds texts for people; names first.

    Args:
        foreign: Names that the class does not have.
        missing: Names that it has and that are not planned; a whole layer is one text.
        wrong: (name, what the config calls it, its value there, the tensor's size).
    """

    foreign: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    wrong: list[tuple[str, str, int, int]] = field(default_factory=list)

    @property
    def weight(self) -> int:
        return len(self.foreign) + len(self.missing)

    def __bool__(self) -> bool:
        return bool(self.foreign or self.missing or self.wrong)


def shown(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def refusal(misfit: Misfit, architecture: str, where: Path) -> NotTheModel:
    if misfit.foreign:
        wanted = f"; missing: {shown(misfit.missing)}" if misfit.missing else ""
        return NotTheModel(
            f"the names are not those of {architecture}",
            where=where,
            found=f"{shown(misfit.foreign)}{wanted}",
            wanted=f"the tensors of {architecture}, which config.json names",
            hint="name the right model's folder with --config DIR, or check the prefix of the stored names",
            kind=Kind.DOES_NOT_FIT,
        )
    if misfit.wrong:
        name, key, stated, size = misfit.wrong[0]
        return NotTheModel(
            "config.json does not match these tensors",
            where=where,
            found=f"{size:,} by {name}",
            wanted=f"{key} {stated:,}",
            hint="name the right model's folder with --config DIR",
            kind=Kind.DOES_NOT_FIT,
        )
    return NotTheModel(
        f"tensors of {architecture} are missing from the checkpoint",
        where=where,
        found=f"{len(misfit.missing):,} missing: {shown(misfit.missing, 6)}",
        wanted="every tensor of the model",
        hint="take what was frozen and not saved from its base model: --base DIR",
        kind=Kind.INCOMPLETE,
    )
