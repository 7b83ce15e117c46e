"""`inspect --tree`, `--depth`, `--sort`: by module, in the order that was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.helpers import FIXTURES, assert_one_error, cli, unpacked

from ckptconv import inspect
from ckptconv.commands.inspect import Node

Made = Callable[[str], Path]
RUN = FIXTURES / "verl_fsdp2_w4" / "run"


def tree(run: Path, **how: object) -> Node:
    found = inspect(run, tree=True, **how).tree  # type: ignore[arg-type]
    assert found is not None
    return found


def walk(node: Node) -> Iterator[Node]:
    yield node
    for child in node.children:
        yield from walk(child)


@pytest.mark.parametrize("case", ["", "megatron/deepseek_v3_tp2pp2ep2", "deepspeed_z3_bf16_w4"])
def test_totals_are_those_of_the_checkpoint(case: str) -> None:
    run = unpacked(case) / "run" if case else RUN
    found, root = inspect(run), tree(run)
    assert (root.tensors, root.parameters, root.nbytes) == (found.tensors, found.parameters, found.nbytes)
    for node in walk(root):
        if node.children:
            held = sum(child.nbytes for child in node.children)
            assert node.nbytes == held * node.count, node.name


def test_equal_layers_are_one_and_others_are_not() -> None:
    """DeepSeek-V3's first layer is dense, the others hold experts."""
    root = tree(unpacked("megatron/deepseek_v3_tp2pp2ep2") / "run")
    (decoder,) = (child for child in root.children if child.name == "decoder")
    (layers,) = (child for child in decoder.children if child.name == "layers")
    assert [(child.name, child.count) for child in layers.children] == [("0", 1), ("1–2", 2)]
    (experts,) = (node for node in walk(layers) if ".experts" in node.name or node.name.startswith("experts"))
    assert experts.count > 1
    assert experts.children[0].name == "linear_fc1.weight"


def test_a_module_of_one_child_is_one_line() -> None:
    names = {node.name for node in walk(tree(RUN))}
    assert "embed_tokens.weight" in names
    assert "layers.0–1" in names
    assert "q_proj" in names, "which has a bias too"


def test_the_screen_has_sizes_and_parameters_of_every_module(made: Made) -> None:
    out = cli("inspect", made("qwen2_5_vl_w4"), "--tree", columns=120).out
    visual, text = (
        re.search(rf"{name} +([\d,]+) +([\d.]+ kB)", out) for name in ("visual", "language_model")
    )
    assert visual
    assert text
    total = sum(int(found[1].replace(",", "")) for found in (visual, text))
    assert re.search(rf"model +{total:,} ", out)


def test_depth_cuts_the_tree_and_implies_it() -> None:
    assert cli("inspect", RUN, "--depth", 0).out.count("─ ") == 0
    assert set(re.findall(r"─ (\S+)", cli("inspect", RUN, "--depth", 1).out)) == {"model", "lm_head.weight"}
    assert "layers.0–1" in cli("inspect", RUN, "--depth", 2).out
    assert "q_proj" not in cli("inspect", RUN, "--depth", 2).out


def test_json_has_the_tree() -> None:
    found = json.loads(cli("inspect", RUN, "--tree", "--json").out)
    assert found["tree"]["parameters"] == found["parameters"]
    assert [child["name"] for child in found["tree"]["children"]] == ["model", "lm_head.weight"]


# --- order


def shown(*args: str) -> list[str]:
    out = cli("inspect", RUN, *args, columns=200).out.split("\ntensor ")[1].split("\n✓")[0]
    return [line.split()[0] for line in out.splitlines()[1:]]


def test_as_stored_by_name_by_size_and_by_shape() -> None:
    stored = [row.pattern for row in inspect(RUN).rows]
    assert shown() == stored
    assert shown("-r") == stored[::-1]
    assert shown("--sort", "name") == sorted(stored)
    assert shown("--sort", "name", "--reverse") == sorted(stored, reverse=True)
    sizes = [row.nbytes for row in inspect(RUN, sort="size").rows]
    assert sizes == sorted(sizes, reverse=True)
    shapes = [row.shape for row in inspect(RUN, sort="shape").rows]
    assert shapes == sorted(shapes, key=lambda shape: (len(shape), shape), reverse=True)
    assert {row.dtype for row in inspect(RUN, sort="dtype").rows} == {"float32"}


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    from ckptconv.tensors.names import natural

    names = ["layers.10.a", "layers.2.a", "layers.2.b", "embed", "layers.x"]
    assert sorted(names, key=natural) == ["embed", "layers.2.a", "layers.2.b", "layers.10.a", "layers.x"]


def test_tree_and_matches_are_sorted_too() -> None:
    for node in walk(tree(RUN, sort="size")):
        sizes = [child.nbytes for child in node.children]
        assert sizes == sorted(sizes, reverse=True)
    matches = inspect(RUN, tensor="*", sort="size").matches or ()
    sizes = [match.nbytes for match in matches]
    assert sizes == sorted(sizes, reverse=True)


def test_an_order_that_there_is_not(tmp_path: Path) -> None:
    assert_one_error(
        cli("inspect", tmp_path / "nowhere", "--sort", "age"), "age", names=["name, size, shape, dtype"]
    )
