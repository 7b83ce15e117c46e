"""Which rank stores what, for few ranks and for thousands."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console
from support.helpers import FIXTURES, cli, unpacked

from ckptconv import inspect
from ckptconv.commands.inspect import RankMap
from ckptconv.show.ranks import colour, coordinates_text, glyph, grouped, spans

Made = Callable[[str], Path]


def coordinates_of(run: Path) -> dict[int, dict[str, int]]:
    return {rank.rank: rank.coordinate for rank in inspect(run).ranks}


# --- mesh coordinates


def test_coordinates_of_device_meshes() -> None:
    assert coordinates_of(FIXTURES / "torch_2_8" / "fsdp2_tp_w4") == {
        0: {"fsdp": 0, "tp": 0},
        1: {"fsdp": 0, "tp": 1},
        2: {"fsdp": 1, "tp": 0},
        3: {"fsdp": 1, "tp": 1},
    }
    assert coordinates_of(FIXTURES / "torch_2_8" / "fsdp2_w2") == {0: {}, 1: {}}, (
        "the rank's number says it all"
    )


def test_a_mesh_in_another_order_than_its_ranks_says_no_coordinate(made: Made) -> None:
    """[[3, 1], [0, 2]]: where a rank's data belongs is not where it stands in the mesh."""
    assert set(map(str, coordinates_of(made("hsdp_oddnames_w4")).values())) == {"{}"}


def test_coordinates_of_megatron_by_its_random_states() -> None:
    by_stage = {rank: {"pp": rank // 2, "tp": rank % 2} for rank in range(4)}
    assert coordinates_of(unpacked("megatron/qwen3_moe_tp2pp2ep2") / "run") == by_stage
    assert coordinates_of(unpacked("megatron/qwen2_tied_pp2") / "run") == {0: {"pp": 0}, 1: {"pp": 1}}
    # Four ranks, two of them data-parallel twins: their parts of TP follow from Megatron's order.
    assert coordinates_of(unpacked("megatron/mixtral_ep2etp2") / "run") == {
        rank: {"tp": rank % 2} for rank in range(4)
    }
    assert set(map(str, coordinates_of(unpacked("megatron/qwen2_mb") / "run").values())) == {"{}"}, (
        "it has none"
    )


def test_coordinates_of_megatrons_rank_folders() -> None:
    found = coordinates_of(unpacked("megatron/mixtral_mlm_legacy") / "run")
    assert found == {rank: {"tp": rank // 2, "ep": rank % 2} for rank in range(4)}


@pytest.mark.parametrize("case", ["llama_tp2pp2vpp2", "qwen3_moe_tp2pp2ep2", "deepseek_v3_tp2pp2ep2"])
def test_a_stage_stores_its_own_layers(case: str) -> None:
    """The coordinates agree with what the ranks store: no layer lies in two stages (but for virtual ones)."""
    found = inspect(unpacked(f"megatron/{case}") / "run")
    for part, shares in zip(found.parts, zip(*(r.parts for r in found.ranks), strict=True), strict=True):
        stages = {rank.coordinate["pp"] for rank, share in zip(found.ranks, shares, strict=True) if share}
        assert len(stages) == 1, part


# --- many ranks


def rank(number: int, parts: tuple[float, ...], nbytes: int = 100, **coordinate: int) -> RankMap:
    return RankMap(number, (), nbytes, 0, parts, coordinate)


def test_up_to_sixteen_ranks_have_a_line_each() -> None:
    ranks = [rank(n, (1 / 16,)) for n in range(16)]
    assert [group.ranks for group in grouped(ranks, 16)] == [(r,) for r in ranks]


@pytest.mark.parametrize("world", [64, 512, 4096])
def test_ranks_that_look_alike_are_one_line(world: int) -> None:
    (group,) = grouped([rank(n, (1 / world,) * 40) for n in range(world)], 16)
    assert len(group.ranks) == world
    assert not group.together
    empty = [rank(n, (0.0,) * 40, 0) if n >= world // 2 else rank(n, (2 / world,) * 40) for n in range(world)]
    assert [len(group.ranks) for group in grouped(empty, 16)] == [world // 2, world // 2]


@pytest.mark.parametrize(("stages", "parts"), [(8, 8), (16, 32), (4, 1024)])
def test_ranks_of_one_mesh_coordinate_are_one_line(stages: int, parts: int) -> None:
    ranks = [
        rank(
            stage * parts + part,
            tuple(float(at == stage) * ((part + stage) % 5) / 4 / parts for at in range(stages)),
            pp=stage,
            tp=part,
        )
        for stage in range(stages)
        for part in range(parts)
    ]
    ranks[0] = rank(0, tuple(n / 97 for n in range(stages)), pp=0, tp=0)
    ranks[1:] = [
        RankMap(r.rank, (), 100, 0, tuple(p + (r.rank % 41) / 90 for p in r.parts), r.coordinate)
        for r in ranks[1:]
    ]
    groups = grouped(ranks, 16)
    if stages <= 16 and groups[0].together:
        assert [coordinates_text(group.ranks, ranks) for group in groups] == [
            f"pp{stage} tp*" for stage in range(stages)
        ]
    assert sum(len(group.ranks) for group in groups) == len(ranks)
    assert len(groups) <= 16


@pytest.mark.parametrize("world", [17, 64, 1000, 4096])
def test_ranks_without_coordinates_are_ranges(world: int) -> None:
    ranks = [rank(n, tuple(float((n >> bit) & 1) for bit in range(12))) for n in range(world)]
    groups = grouped(ranks, 16)
    assert len(groups) <= 16
    assert [r.rank for group in groups for r in group.ranks] == list(range(world))
    assert all(group.together for group in groups if len(group.ranks) > 1)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ([3], "3"),
        ([0, 1, 2, 5], "0-2, 5"),
        ([0, 8, 16, 24], "0, 8, .. 24"),
        ([0, 1, 8, 9, 16, 17, 24, 25], "0-1, 8-9, .. 24-25"),
        ([0, 1, 5, 9, 20, 21], "0-1, 5, … (6)"),
    ],
)
def test_spans(numbers: list[int], text: str) -> None:
    assert spans(numbers) == text


def test_a_rank_has_one_glyph_and_colour_everywhere() -> None:
    assert len({glyph(number) for number in range(62)}) == 62
    assert [glyph(number) for number in (0, 9, 10, 61, 62)] == ["0", "9", "a", "Z", "0"]
    console = Console(force_terminal=True, color_system="standard", width=100)
    for number in range(8):
        console.get_style(colour(number))
    out = cli("inspect", FIXTURES / "torch_2_8" / "fsdp2_tp_w4", "--tensor", "down.weight").out
    assert re.search(r"^ +3 +fsdp1 tp1", out, re.MULTILINE)
    assert "2222233333" in out
