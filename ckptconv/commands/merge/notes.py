"""Notes on what only a person can judge, found during the copy: NaN, Inf, and damaged files of an earlier run."""

from __future__ import annotations

from ckptconv.copy.finished import Nonfinite
from ckptconv.copy.run import Copied
from ckptconv.errors import listed
from ckptconv.plan import Plan


def notes_of(copied: Copied, plan: Plan) -> list[str]:
    """Sentences for the screen. NaN and Inf are not errors, since a user may want the model of a run that diverged.

    Args:
        copied: the result of the copy.
        plan: the plan.
    """
    notes = nonfinite_notes(copied, plan)
    if copied.damaged:
        them = "it was" if len(copied.damaged) == 1 else "they were"
        notes.append(
            f"{listed(copied.damaged)} of the run that was killed did not have the bytes any more that it wrote: "
            f"{them} written again"
        )
    return notes


def nonfinite_notes(copied: Copied, plan: Plan) -> list[str]:
    """One sentence for tensors that are all NaN or Inf, and one for other tensors; each names the rank if it is one."""
    whole = [item for item in copied.nonfinite if item.count == item.numel]
    part = [item for item in copied.nonfinite if item.count < item.numel]
    notes = []
    if whole:
        names = listed([plan.outputs[item.key].name for item in whole])
        holds = "holds" if len(whole) == 1 else "hold"
        notes.append(f"{names} {holds} nothing but NaN or Inf{_stored_by(whole, plan)}")
    if part:
        names = listed([f"{plan.outputs[item.key].name} ({item.count:,} of {item.numel:,})" for item in part])
        notes.append(f"NaN or Inf in {names}{_stored_by(part, plan)}")
    return notes


def _stored_by(items: list[Nonfinite], plan: Plan) -> str:
    """Names the rank if a single one of several stored all of them, else ""."""
    rank_of = plan.checkpoint.rank_of
    ranks = {rank_of.get(file, -1) for item in items for file in item.files or ("",)}
    if len(ranks) != 1 or -1 in ranks or len(set(rank_of.values())) < 2:
        return ""
    return f": all of it was stored by rank {ranks.pop()}"
