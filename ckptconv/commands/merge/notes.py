"""What only a person can judge, found while the bytes went by: NaN and Inf, and damaged files of an earlier run."""

from __future__ import annotations

from ckptconv.copy.finished import Nonfinite
from ckptconv.copy.run import Copied
from ckptconv.errors import listed
from ckptconv.plan import Plan


def notes_of(copied: Copied, plan: Plan) -> list[str]:
    """Sentences for the screen. A run that diverged is still a run, so NaN and Inf are no error."""
    notes = nonfinite_notes(copied, plan)
    if copied.damaged:
        them = "it was" if len(copied.damaged) == 1 else "they were"
        notes.append(
            f"{listed(copied.damaged)} of the run that was killed did not have the bytes any more that it wrote: "
            f"{them} written again"
        )
    return notes


def nonfinite_notes(copied: Copied, plan: Plan) -> list[str]:
    """One sentence for whole tensors of NaN or Inf, one for others; each with the rank where it is only one."""
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
    """The rank that stored all of it, where there are several and it was one."""
    rank_of = plan.checkpoint.rank_of
    ranks = {rank_of.get(file, -1) for item in items for file in item.files or ("",)}
    if len(ranks) != 1 or -1 in ranks or len(set(rank_of.values())) < 2:
        return ""
    return f": all of it was stored by rank {ranks.pop()}"
