"""`--svg` and `--html` in a browser, light and dark: nothing runs, is asked for, lies outside or overlaps."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.browser import Browser, running
from support.helpers import FIXTURES, REPO, cli, unpacked

RUN = FIXTURES / "verl_fsdp2_w4" / "run"
HARM = "<script>window.ran=1</script><img src=x onerror=window.ran=2>]]>\"'&amp;\x1b[31m\u202e<!--"
PAPER = {False: "rgb(255, 255, 255)", True: "rgb(13, 17, 23)"}


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with running(tmp_path_factory.mktemp("browser")) as found:
        yield found


def harmful(folder: Path) -> Path:
    """A run whose folder and whose config mean harm to a page."""
    run = Path(shutil.copytree(RUN, folder / "a run<script>window.ran=3<" / "script>'\"&quot;"))
    for config in run.rglob("config.json"):
        settings = json.loads(config.read_text()) | {"architectures": [HARM], "model_type": HARM}
        config.write_text(json.dumps(settings))
    return run


def commands(folder: Path) -> dict[str, list[object]]:
    megatron = unpacked("megatron/qwen3_moe_tp2pp2ep2") / "run"
    assert cli("merge", megatron, folder / "model", "-q").code == 0
    damaged = Path(shutil.copytree(folder / "model", folder / "damaged"))
    weights = damaged / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-40:] = b"\x40" * 40
    weights.write_bytes(data)
    return {
        "inspect": ["inspect", megatron],
        "tree": ["inspect", megatron, "--tree"],
        "tensor": ["inspect", RUN, "--tensor", "down_proj"],
        "verify": ["verify", folder / "model", "--against", megatron],
        "damaged": ["verify", damaged, "--against", megatron],
        "harmful": ["inspect", harmful(folder)],
        "harmful tensor": ["inspect", harmful(folder / "more"), "--tensor", "*"],
    }


def test_every_export_is_calm_whole_and_readable(browser: Browser, tmp_path: Path) -> None:
    for name, words in commands(tmp_path).items():
        svg, html = tmp_path / f"{name}.svg", tmp_path / f"{name}.html"
        cli(*words, "--svg", svg, "--html", html)
        for file in (svg, html):
            for dark in (False, True):
                look = browser.look(file, dark=dark)
                assert look.problems == [], (file.name, dark)
                assert look.scripts is None
                assert look.outside == [], (file.name, dark)
                assert look.overlaps == [], (file.name, dark)
                assert look.paper == PAPER[dark]
                assert look.title.startswith(f"ckptconv {words[0]} ")
                assert look.text.startswith("$ ckptconv ") or "$ ckptconv " in look.text
                (tmp_path / f"{file.name}.{'dark' if dark else 'light'}.png").write_bytes(look.png)


def test_the_pictures_of_the_docs_fit_and_read_well(browser: Browser) -> None:
    for file in sorted((REPO / "docs" / "images").glob("*.svg")):
        look = browser.look(file)
        assert (look.problems, look.outside, look.overlaps) == ([], [], []), file.name


def test_the_look_sees_what_is_wrong(browser: Browser, tmp_path: Path) -> None:
    """Else the tests above could not fail."""
    text = '<text x="{}" y="20" class="p">{}</text>'
    head = '<svg xmlns="http://www.w3.org/2000/svg" width="100" height="50" viewBox="0 0 100 50">'
    inside = [
        text.format(1, "x" * 40),
        text.format(9, "y"),
        text.format(1400, "z"),
        "<script>window.ran=1;console.error(1)</script>",
    ]
    (tmp_path / "a.svg").write_text(f'{head}{"".join(inside)}<image href="http://127.0.0.1:9/x.png"/></svg>')
    look = browser.look(tmp_path / "a.svg")
    assert look.scripts == 1
    assert any("127.0.0.1:9" in problem for problem in look.problems)
    assert any("consoleAPICalled" in problem for problem in look.problems)
    assert look.overlaps
    assert look.outside


def test_an_svg_of_harmful_names_is_valid_xml(tmp_path: Path) -> None:
    """Also where there is no browser: a control character would make the file invalid."""
    assert (
        cli("inspect", harmful(tmp_path), "--svg", tmp_path / "a.svg", "--html", tmp_path / "a.html").code
        == 0
    )
    found = ElementTree.parse(tmp_path / "a.svg").getroot()
    assert not [item for item in found.iter() if item.tag.endswith(("script", "image", "foreignObject"))]
    assert not re.search(r"<(script|img|iframe)", (tmp_path / "a.html").read_text())
