"""`--svg` and `--html`: one file that needs nothing else, written whole or not at all, readable on light and dark."""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from xml.etree import ElementTree

import pytest
from rich.text import Text
from support.helpers import FIXTURES, assert_one_error, cli

from ckptconv.errors import CkptconvError
from ckptconv.show import export as module
from ckptconv.show.drawn import DARK, LIGHT, Palette
from ckptconv.show.export import check_export, export

RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def made(folder: Path, *asked: str) -> tuple[str, str]:
    """The picture and the page of one run of the command."""
    svg, html = folder / "a.svg", folder / "a.html"
    ran = cli("inspect", RUN, *asked, "--svg", svg, "--html", html, columns=60)
    assert (ran.code, ran.err) == (0, "")
    return svg.read_text(encoding="utf-8"), html.read_text(encoding="utf-8")


def text_of(svg: str) -> str:
    """What a reader sees, line by line."""
    lines: dict[float, str] = {}
    for item in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text"):
        y = float(item.get("y", "0"))
        column = round((float(item.get("x", "0")) - 16) / 8.4)
        lines[y] = lines.get(y, "").ljust(column) + (item.text or "")
    return "\n".join(lines[y] for y in sorted(lines))


@pytest.mark.parametrize("asked", [(), ("--tensor", "down_proj"), ("--tree",)])
def test_both_hold_the_screen_at_their_own_width(tmp_path: Path, asked: tuple[str, ...]) -> None:
    svg, html = made(tmp_path, *asked)
    screen = cli("inspect", RUN, *asked, columns=module.WIDTH).out
    wanted = [line.rstrip() for line in screen.splitlines() if line.strip()]
    assert text_of(svg).splitlines()[1:] == wanted
    body = re.sub(r"<[^>]*>", "", html.split("<body>")[1])
    from html import unescape

    assert [line.rstrip() for line in unescape(body).splitlines() if line.strip()][1:] == wanted


def test_they_need_nothing_else(tmp_path: Path) -> None:
    for text in made(tmp_path):
        assert set(re.findall(r"https?://[^\s\"'<)]+", text)) <= {"http://www.w3.org/2000/svg"}
        for word in ("<script", "@import", "url(", "src=", "href=", "@font-face"):
            assert word not in text
        assert len(text) < 60_000


def test_the_command_is_their_title(tmp_path: Path) -> None:
    for text in made(tmp_path, "--tensor", "down_proj"):
        assert f"<title>ckptconv inspect {RUN} --tensor down_proj</title>" in text


def test_names_are_escaped(tmp_path: Path) -> None:
    svg, html = tmp_path / "a.svg", tmp_path / "a.html"
    export(Text("<script>alert(1)</script> & co"), svg=svg, html=html, title="<b>", width=80)
    assert text_of(svg.read_text()).splitlines() == ["$ <b>", "<script>alert(1)</script> & co"]
    assert "<script" not in html.read_text()


def contrast(one: str, two: str) -> float:
    """WCAG 2's contrast ratio of two colours."""

    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_every_colour_can_be_read_on_its_paper(palette: Palette) -> None:
    for colour in (palette.text, palette.faint, *palette.colours):
        assert contrast(colour, palette.paper) >= 4.5, colour


def test_both_follow_the_readers_choice_of_light_and_dark(tmp_path: Path) -> None:
    for text in made(tmp_path):
        light, dark = text.split("@media(prefers-color-scheme:dark)")
        assert LIGHT.paper in light
        assert DARK.paper in dark


# --- writing


def test_a_folder_is_refused(tmp_path: Path) -> None:
    assert_one_error(cli("inspect", RUN, "--svg", tmp_path), "--svg names a folder", names=[tmp_path])
    assert_one_error(cli("inspect", RUN, "--html", tmp_path / "no" / "a.html"), "does not exist")


def test_both_to_one_file_is_refused(tmp_path: Path) -> None:
    ran = cli("inspect", RUN, "--svg", tmp_path / "a", "--html", tmp_path / "a")
    assert_one_error(ran, "the same file")


def test_a_file_that_is_no_picture_is_not_replaced(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"weights")
    assert_one_error(cli("inspect", RUN, "--svg", weights), "not an SVG or HTML export", names=[weights])
    assert weights.read_bytes() == b"weights"


def test_a_picture_of_before_is_replaced(tmp_path: Path) -> None:
    first = made(tmp_path)
    assert made(tmp_path, "--tree") != first


def test_it_is_refused_before_the_work_begins(tmp_path: Path) -> None:
    with pytest.raises(CkptconvError, match="names a folder"):
        check_export(svg=tmp_path, html=None)
    assert_one_error(cli("inspect", tmp_path / "nowhere", "--svg", tmp_path), "--svg names a folder")


def test_a_disk_that_is_full_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = made(tmp_path)
    monkeypatch.setattr(
        module.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    ran = cli("inspect", RUN, "--tree", "--svg", tmp_path / "a.svg")
    assert_one_error(ran, "--svg: cannot be written: No space left on device")
    assert (tmp_path / "a.svg").read_text(encoding="utf-8") == before[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.html", "a.svg"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert_one_error(cli("inspect", RUN, "--svg", tmp_path / "a.svg"), "cannot be written: Permission denied")


def test_a_link_stays_one_and_the_file_has_the_users_rights(tmp_path: Path) -> None:
    (tmp_path / "shared").mkdir()
    (tmp_path / "link.svg").symlink_to(tmp_path / "shared" / "real.svg")
    assert cli("inspect", RUN, "--svg", tmp_path / "link.svg").code == 0
    assert (tmp_path / "link.svg").is_symlink()
    (tmp_path / "plain").touch()
    real = tmp_path / "shared" / "real.svg"
    assert stat.S_IMODE(real.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)


def test_json_and_quiet_write_them_too(tmp_path: Path) -> None:
    for flag in ("--json", "-q"):
        assert cli("inspect", RUN, flag, "--svg", tmp_path / f"{flag}.svg").code == 0
        assert (tmp_path / f"{flag}.svg").is_file()


def test_no_color_is_for_terminals_and_leaves_pictures_alone(tmp_path: Path) -> None:
    cli("inspect", RUN, "--svg", tmp_path / "a.svg", env={"NO_COLOR": "1"})
    cli("inspect", RUN, "--svg", tmp_path / "b.svg")
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
