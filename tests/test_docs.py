"""The pages say what the code says: flags, JSON, messages, links."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from support.helpers import FIXTURES, REPO, cli

PAGES = sorted([*REPO.glob("*.md"), *(REPO / "docs").glob("*.md"), *(REPO / "benchmarks").glob("*.md")])
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_relative_link_leads_to_a_file(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:|#|mailto:)([^)#\s]+)", page.read_text(encoding="utf-8")):
        assert (page.parent / target).exists(), target


def test_every_page_is_in_the_index() -> None:
    index = (REPO / "docs" / "README.md").read_text(encoding="utf-8")
    assert [
        p.name for p in (REPO / "docs").glob("*.md") if p.name != "README.md" and f"({p.name})" not in index
    ] == []


def test_the_page_of_merge_has_every_flag() -> None:
    from ckptconv.cli import app

    text = (REPO / "docs" / "merge.md").read_text(encoding="utf-8")
    params = typer.main.get_command(app).commands["merge"].params  # type: ignore[attr-defined]
    shown = {
        o
        for p in params
        if p.param_type_name == "option" and not p.hidden
        for o in (*p.opts, *p.secondary_opts)
    }
    spelled = {option for option in shown if "_" not in option and option not in ("--help", "-h")}
    short = {"--verbose": "-v", "--quiet": "-q", "--no-private": "--private", "--hf-upload-path": "--push"}
    assert [o for o in sorted(spelled) if not re.search(rf"{re.escape(short.get(o, o))}\b", text)] == []


@pytest.mark.parametrize("command", ["inspect", "merge", "verify"])
def test_the_reference_names_keys_that_are_there(command: str, tmp_path: Path) -> None:
    text = (REPO / "docs" / "reference.md").read_text(encoding="utf-8")
    row = next(line for line in text.splitlines() if line.startswith(f"| `{command}` |"))
    assert cli("merge", RUN, tmp_path / "out", "-q").code == 0
    words = {
        "inspect": (RUN,),
        "merge": (RUN, tmp_path / "more"),
        "verify": (tmp_path / "out", "--against", RUN),
    }
    document = json.loads(cli(command, *words[command], "--json").out)
    assert document["schema"] == 1
    named = set(re.findall(r"`(\w+)`", row.split("|", 2)[2]))
    assert named - document.keys() <= ({"found", "problems"} if command == "verify" else set())


def test_an_error_as_json_has_its_kind() -> None:
    document = json.loads(cli("merge", "nowhere", "out", "--json").out)
    assert (document["schema"], document["error"]["kind"], document["error"]["code"]) == (
        1,
        "not_a_checkpoint",
        2,
    )


def test_every_kind_of_error_is_in_the_reference() -> None:
    from ckptconv import Kind

    text = (REPO / "docs" / "reference.md").read_text(encoding="utf-8")
    assert [kind.value for kind in Kind if f"`{kind.value}`" not in text] == []


def test_the_messages_of_troubleshooting_are_those_of_the_code() -> None:
    source = " ".join(path.read_text(encoding="utf-8") for path in (REPO / "ckptconv").rglob("*.py"))
    source = re.sub(r'"\s*\n\s*f?"', "", source)
    text = (REPO / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^\*\*`([^`]+)`", text, re.MULTILINE)
    assert len(messages) >= 20
    for message in messages:
        parts = [part.strip() for part in re.split(r"\d+|megatron|step|…|torch|: ", message)]
        assert any(len(part) > 7 and part in source for part in parts), message
