"""Every refusal says what sort it is: at its own site, or by the default of the room that it comes from."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.helpers import own_copy

import ckptconv
from ckptconv.errors import CkptconvError, Kind

SOURCES = Path(ckptconv.__file__).parent
# Rooms whose errors get a kind from the function that calls them: open_checkpoint (DAMAGED), make_plan (DOES_NOT_FIT).
# tensors/view.py is called by both.
DEFAULTED = {"backends", "models", "plan", "tensors"}
# The steps of a run may fail for different reasons.
MIXED = {"cli/merge_steps.py"}


def sites_without_a_kind() -> Iterator[tuple[str, str]]:
    """(room, file:line) of every `CkptconvError(...)` without `kind=`."""
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
                continue
            if node.func.id == "CkptconvError" and all(keyword.arg != "kind" for keyword in node.keywords):
                yield name.parts[0], f"{name}:{node.lineno}"


def test_every_refusal_states_its_kind_or_gets_its_rooms_default() -> None:
    sites = [place for room, place in sites_without_a_kind() if room not in DEFAULTED]
    assert [place for place in sites if place.split(":")[0] not in MIXED] == []


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-100])


def legacy(file: Path) -> None:
    import torch

    torch.save(torch.load(file, weights_only=False), file, _use_new_zipfile_serialization=False)


def gone(file: Path) -> None:
    file.unlink()


def all_gone(file: Path) -> None:
    for each in file.parent.glob("*.pt"):
        each.unlink()


@pytest.mark.parametrize(
    ("harm", "kind", "what"),
    [
        (cut, Kind.DAMAGED, "truncated or damaged"),
        (legacy, Kind.UNSUPPORTED, "legacy"),
        (gone, Kind.INCOMPLETE, "rank"),
        (all_gone, Kind.INCOMPLETE, "no weights|not complete|unfinished|incomplete|holds no"),
    ],
)
def test_what_is_wrong_with_a_rank_file_is_told_apart(
    made: Callable[[str], Path], tmp_path: Path, harm: Callable[[Path], None], kind: Kind, what: str
) -> None:
    run = own_copy(made("fsdp2_w4"), tmp_path / "run")
    harm(min(run.rglob("model_world_size_4_rank_1.pt")))
    with pytest.raises(CkptconvError, match=what) as error:
        ckptconv.merge(run, tmp_path / "out", dry_run=True)
    assert error.value.kind is kind, str(error.value)


def test_an_unknown_backend_is_a_wrong_argument(made: Callable[[str], Path]) -> None:
    with pytest.raises(CkptconvError, match="unknown backend") as error:
        ckptconv.inspect(made("fsdp2_w4"), backend="fdsp")
    assert error.value.kind is Kind.USAGE
