"""The command: exit codes, --json, --html, what a screen says at any width."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support.helpers import cli
from support.verify_tools import Made, Q, poke, rewrite, views

O = Q.replace("q_proj", "o_proj")  # noqa: E741


@pytest.fixture
def broken(copied: Callable[..., Path]) -> Path:
    """One rank's rows, another tensor's columns, a NaN."""
    out = copied("fsdp2_w4", "hub")

    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors[Q][14:28] = tensors[Q][:14]
        tensors[O][:, 27:] *= 1.01
        tensors["model.layers.0.mlp.down_proj.weight"][3, 4] = np.nan

    rewrite(out, change)
    return out


def test_exit_codes(made: Made, broken: Path, tmp_path: Path) -> None:
    hub = made("fsdp2_w4") / "hub"
    assert cli("verify", hub, "--against", made("fsdp2_w4")).code == 0
    assert cli("verify", broken, "--against", hub).code == 1
    assert cli("verify", hub, "--base", hub, "--against", hub).code == 1
    for wrong in (
        (tmp_path / "nothing",),
        (hub, "--against", tmp_path / "nothing"),
        (hub, "--base", tmp_path / "nothing"),
        (hub, "--against", hub, "--logits", "--device", "toaster"),
        (hub, "--html", tmp_path / "no" / "such.html"),
        (hub, "--atol", "-1"),
    ):
        assert cli("verify", *wrong).code == 2, wrong
    assert cli("verify", hub, "--against", hub, "-q").out == "yes\n"
    assert cli("verify", broken, "--against", hub, "-q").out == "no\n"


def test_json_has_everything(made: Made, broken: Path) -> None:
    ran = cli("verify", broken, "--against", made("fsdp2_w4"), "--base", made("fsdp2_w4") / "hub", "--json")
    data = json.loads(ran.out)
    assert (data["ok"], data["code"], ran.code) == (False, 1, 1)
    assert [layer["name"] for layer in data["layers"]] == [
        "names", "shapes", "dtypes", "integrity", "values", "sanity", "trained", "reads",
    ]  # fmt: skip
    assert all(layer["proves"] for layer in data["layers"])
    by_name = {item["name"]: item for item in data["differences"]}
    assert len(by_name) == 3
    assert by_name[Q]["slices"] == [{"rank": 1, "offsets": [14, 0], "sizes": [14, 27]}]
    assert by_name[Q]["looks_like"] == "rank 0's slice is in the place of rank 1's"
    assert (by_name[O]["first_column"], by_name[O]["last_column"]) == (27, 53)
    assert by_name[O]["max_rel"] == pytest.approx(0.01, rel=1e-3)
    assert by_name[O]["mean_abs"] < by_name[O]["max_abs"]


@pytest.mark.parametrize("columns", [60, 80, 120, 200])
def test_a_screen_says_what_and_where(made: Made, broken: Path, columns: int) -> None:
    ran = cli("verify", broken, "--against", made("fsdp2_w4"), columns=columns)
    wide = [line for line in ran.out.splitlines() if len(line) > columns]
    paths = (str(broken), str(made("fsdp2_w4")))
    assert all(any(path in line for path in paths) for line in wide), (
        "only a path that can be pasted is longer"
    )
    for said in (
        "rows ░░░░░░░░█████████░░░░░░░░░░░░░░░",
        "columns ░░░░░░░░░░░░░░░░████████████████",
        "max |Δ|",
        "mean |Δ|",
        "relative",
        "rows 14–27: the slice of rank 1",
        "holds 1 NaN",
        "problems in: values, sanity",
    ):
        assert said in ran.flat, said
    assert Q in ran.out


def test_swapped_layers_take_a_line_and_not_forty(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")

    def change(tensors: dict[str, np.ndarray]) -> None:
        for name in [name for name in tensors if ".layers.0." in name]:
            other = name.replace("layers.0", "layers.1")
            tensors[name], tensors[other] = tensors[other], tensors[name]

    rewrite(out, change)
    ran = cli("verify", out, "--against", made("fsdp2_w4") / "hub", columns=120)
    assert "model.layers.0 and model.layers.1 are swapped: 12 tensors" in ran.out
    assert "and 24 that are in another layer" in ran.out
    assert len(ran.out.splitlines()) < 20


def test_a_page_that_needs_nothing_else(made: Made, broken: Path, tmp_path: Path) -> None:
    page, picture = tmp_path / "report.html", tmp_path / "report.svg"
    ran = cli("verify", broken, "--against", made("fsdp2_w4"), "--html", page, "--svg", picture)
    assert ran.code == 1
    for path in (page, picture):
        text = path.read_text(encoding="utf-8")
        assert "the slice of rank" in text.replace("&#x27;", "'")
        assert "<script" not in text
        assert "src=" not in text
        assert not any(f'{kind}="http' in text for kind in ("href", "url"))


def test_a_page_lists_more_than_a_screen(
    made: Made, merged_once: Callable[[str], Path], tmp_path: Path
) -> None:
    folders = merged_once("fsdp2_w4"), "--against", made("fsdp2_w4") / "hub"
    ran = cli("verify", *folders, "--html", tmp_path / "a.html")
    assert "and 7 more (--json lists all)" in ran.out
    text = (tmp_path / "a.html").read_text(encoding="utf-8")
    assert text.count("max |Δ|") == 27
    assert "--json lists all" not in text


def test_the_prompt_and_the_base_are_asked_for_by_flags(made: Made) -> None:
    hub = made("fsdp2_w4") / "hub"
    ran = cli("verify", hub, "--against", hub, "--logits", "--prompt", "Paris", "--device", "cpu")
    assert ran.code == 0
    assert "Running   " in ran.err
    assert "behaviour ✓" in " ".join(ran.out.split())
    ran = cli("verify", hub, "--base", hub)
    assert "untrained: every one is the base's, bit for bit" in ran.flat


def test_a_flipped_bit_in_a_folder_of_its_own(made: Made, merged: Callable[[str], Path]) -> None:
    """Nothing to compare with but the receipt: the tensor is named."""
    out = merged("fsdp2_w4")
    poke(views(out)[Q], (0, 0))
    ran = cli("verify", out)
    assert ran.code == 1
    assert f"{Q} its bytes are not those of the receipt's hash" in ran.flat
