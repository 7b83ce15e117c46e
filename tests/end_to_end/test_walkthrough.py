"""docs/from-checkpoint-to-hub.md: its lines, run as they stand, from a real checkpoint to the Hub and back."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
from support.helpers import FIXTURES, REPO, cli
from support.hub import Hub

pytest_plugins = ["support.hub.fixture"]

PAGE = REPO / "docs" / "from-checkpoint-to-hub.md"


@pytest.mark.parametrize("hub", ["xet"], indirect=True)
def test_every_line_works(hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = PAGE.read_text(encoding="utf-8").replace("org/name", "alice/name")
    lines = [shlex.split(line)[1:] for line in re.findall(r"^    (ckptconv .*)$", text, re.M)]
    assert [words[0] for words in lines] == [
        "inspect",
        "merge",
        "merge",
        "verify",
        "push",
        "push",
        "push",
        "inspect",
        "verify",
        "merge",
    ]
    shutil.copytree(FIXTURES / "verl_fsdp2_w4" / "run", tmp_path / "checkpoints" / "run")
    monkeypatch.chdir(tmp_path)
    said = []
    for words in lines:
        ran = cli(*words)
        assert ran.code == 0, (words, ran.err)
        said.append(ran.out)
    assert f"✓ {hub.url}/alice/name   " in said[5]
    assert said[6] == f"✓ {hub.url}/alice/name   already up to date   private\n"
    assert "Hugging Face model on the Hub" in said[7]
    assert set(hub.store.repos) == {"alice/name", "alice/name-2"}
    card = hub.store.repos["alice/name"].file("main", "README.md").data or b""
    (python,) = re.findall(r"```python\n(.*?)```", text, re.S)
    assert python in card.decode()
    assert "(push.md)" in text
    for page in re.findall(r"\]\(([a-z-]+\.md)\)", text):
        assert (PAGE.parent / page).is_file()
