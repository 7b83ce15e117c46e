"""Who may import whom, read from the sources; and what a command must not import, read from sys.modules."""

from __future__ import annotations

import ast
import functools
import importlib
import json
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator
from dataclasses import is_dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import ckptconv

SOURCES = Path(ckptconv.__file__).parent

FRAMEWORKS = {"torch", "transformers", "accelerate"}
# What every room may use.
EVERYWHERE = {"__version__", "errors"}
COMMANDS = {"commands.inspect", "commands.merge", "commands.push", "commands.verify"}
BELOW_COMMANDS = {
    "backends", "compute", "copy", "engines", "formats", "hub", "models", "plan", "publish", "read", "storage", "tensors",
}  # fmt: skip
# What several commands share.
SHARED = {"commands.display", "commands.packages", "commands.planning", "commands.progress"}
# docs/design.md: a room -> the rooms it may import, downwards only. A room is a folder, or one command.
LAW: dict[str, set[str]] = {
    "__version__": set(),
    "errors": set(),
    "tensors": set(),
    "storage": {"tensors"},
    "formats": {"tensors"},
    "backends": {"formats", "storage", "tensors"},
    "models": {"tensors"},
    "read": {"tensors"},
    "compute": {"read", "tensors"},
    "plan": {"compute", "models", "tensors"},
    "copy": {"compute", "plan", "read", "tensors"},
    "publish": {"backends", "compute", "copy", "formats", "plan", "read", "tensors"},
    "engines": {"compute", "copy", "plan", "publish", "read", "tensors"},
    "hub": {"backends", "formats", "publish", "storage", "tensors"},
    "commands": set(),
    "commands.planning": BELOW_COMMANDS,
    "commands.display": set(),
    "commands.packages": set(),
    "commands.progress": set(),
    "commands.merge": BELOW_COMMANDS | SHARED,
    "commands.inspect": BELOW_COMMANDS | SHARED,
    "commands.verify": BELOW_COMMANDS | SHARED | {"commands.merge"},
    "commands.push": {
        "backends",
        "commands.packages",
        "commands.progress",
        "commands.verify",
        "formats",
        "hub",
        "publish",
        "storage",
        "tensors",
    },
    "commands.open": {
        "backends",
        "commands.packages",
        "commands.planning",
        "compute",
        "hub",
        "plan",
        "read",
        "tensors",
    },
    "show": COMMANDS | {"commands.progress", "plan", "publish", "tensors"},
    "cli": COMMANDS | {"commands.planning", "plan", "show"},
    "__main__": {"cli", "show"},
    "__init__": COMMANDS
    | {"commands.display", "commands.open", "commands.progress", "plan", "show", "tensors"},
}


def room_of(module: str) -> str:
    """ckptconv.backends.fsdp.read -> backends; ckptconv.commands.push.hub -> commands.push."""
    first, second = [*module.split("."), "__init__", ""][1:3]
    if first == "commands" and second not in ("", "__init__"):
        return f"commands.{second}"
    return first


@functools.cache
def modules() -> dict[str, ast.Module]:
    """Every module by its dotted name."""
    found = {}
    for path in sorted(SOURCES.rglob("*.py")):
        parts = path.relative_to(SOURCES.parent).with_suffix("").parts
        if parts[-1] == "__init__" and len(parts) > 2:
            parts = parts[:-1]
        found[".".join(parts)] = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return found


def imports_of(tree: ast.Module, known: Collection[str] = ()) -> Iterator[tuple[str, int]]:
    """Everything a module imports, anywhere in it, as (dotted name, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: imports are written out"
            base = node.module or ""
            for alias in node.names:
                whole = f"{base}.{alias.name}"  # from ckptconv.backends import huggingface
                yield whole if base == "ckptconv" or whole in known else base, node.lineno


def own_imports() -> Iterator[tuple[str, str, str, int]]:
    """(module, its room, room it imports, line) for every import of another room."""
    known = modules()
    for module, tree in known.items():
        for imported, line in imports_of(tree, known):
            if imported.split(".")[0] == "ckptconv" and room_of(imported) != room_of(module):
                yield module, room_of(module), room_of(imported), line


def test_every_room_is_in_the_law() -> None:
    assert {room_of(module) for module in modules()} <= set(LAW)


def test_rooms_import_downwards_only() -> None:
    wrong = [
        f"{module}:{line} imports {imported}"
        for module, room, imported, line in own_imports()
        if imported not in LAW.get(room, set()) | EVERYWHERE
    ]
    assert wrong == []


def test_the_law_itself_goes_downwards() -> None:
    """Each room may import only rooms above it in the table."""
    order = list(LAW)
    for room, allowed in LAW.items():
        assert all(order.index(other) < order.index(room) for other in allowed), room


def reached_from(room: str) -> set[str]:
    return {imported for _, importing, imported, _ in own_imports() if importing == room}


def test_backends_and_models_do_not_know_each_other() -> None:
    assert "models" not in reached_from("backends")
    assert "backends" not in reached_from("models")
    assert "models" in reached_from("plan"), "they meet in the plan; nothing was found there"


def test_tensors_are_below_everything() -> None:
    assert reached_from("tensors") == {"errors"}


def names_of(tree: ast.Module, module: str) -> set[str]:
    """What is imported by name from a module."""
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module == module]
    return {alias.name for node in found for alias in node.names}


def is_record(value: object) -> bool:
    """True for a class without behaviour: a dataclass or a NamedTuple."""
    return is_dataclass(value) or (isinstance(value, type) and hasattr(value, "_fields"))


def test_show_knows_records_only() -> None:
    """Of the commands it takes the classes of their results and nothing that acts."""
    shown = [tree for module, tree in modules().items() if room_of(module) == "show"]
    for command in sorted(COMMANDS):
        homes = [name for name in modules() if f"{name}.".startswith(f"ckptconv.{command}.")]
        names = {(home, name) for home in homes for tree in shown for name in names_of(tree, home)}
        assert names, command
        own = {(home, name): vars(importlib.import_module(home))[name] for home, name in names}
        assert [name for name, value in own.items() if not is_record(value)] == []


def test_the_command_line_makes_no_plans() -> None:
    """It takes the options from there, and leaves the rest to the commands."""
    lines = [tree for module, tree in modules().items() if room_of(module) == "cli"]
    assert set[str]().union(*(names_of(tree, "ckptconv.plan") for tree in lines)) <= {"Options"}


def test_no_circles() -> None:
    """Among the imports at the top of modules, inside rooms too."""
    known = modules()
    above: dict[str, set[str]] = {}
    for module, tree in known.items():
        top = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        above[module] = {name for name, _ in imports_of(top, known) if name in known} - {module}
    TopologicalSorter(above).prepare()  # raises CycleError, which names them


def test_torch_and_transformers_are_not_imported_at_the_top() -> None:
    """A module may import them inside a function, or for types alone."""
    heavy = []
    for module, tree in modules().items():
        for node in tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [alias.name for alias in node.names]
                    if isinstance(node, ast.Import)
                    else [node.module or ""]
                )
                heavy += [(module, name) for name in names if name.split(".")[0] in FRAMEWORKS]
    assert heavy == []


# --- what a command imports

HEAVY = {*FRAMEWORKS, "safetensors", "huggingface_hub"}


def imported_by(*args: str) -> set[str]:
    """The packages in sys.modules after a command."""
    code = (
        "import json, sys\n"
        "from ckptconv.__main__ import main\n"
        "sys.argv = ['ckptconv', *sys.argv[1:]]\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as end:\n"
        "    assert not end.code, end.code\n"
        "print(json.dumps(sorted({name.split('.')[0] for name in sys.modules})), file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def test_the_package_itself_imports_nothing_heavy() -> None:
    code = "import sys, ckptconv; print(*{name.split('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & (HEAVY | {"numpy", "typer", "rich"})


@pytest.mark.parametrize(
    "command", [(), ("merge",), ("push",)], ids=lambda command: " ".join(command) or "all"
)
def test_help_imports_neither_torch_nor_transformers(command: tuple[str, ...]) -> None:
    assert not imported_by(*command, "--help") & (HEAVY | {"numpy"})


def test_inspect_imports_neither_torch_nor_numpy(made: Callable[[str], Path]) -> None:
    found = imported_by("inspect", str(made("fsdp2_w4")))
    assert "ckptconv" in found
    assert not found & (HEAVY | {"numpy", "pydantic"})  # each takes longer than all of ckptconv's own modules


def test_merging_a_plain_model_imports_neither_torch_nor_transformers(
    made: Callable[[str], Path], tmp_path: Path
) -> None:
    found = imported_by("merge", str(made("fsdp2_w4")), str(tmp_path / "model"))
    assert (tmp_path / "model" / "config.json").is_file()
    assert not found & (FRAMEWORKS | {"pydantic"})


def test_the_readers_of_other_backends_are_not_imported(made: Callable[[str], Path]) -> None:
    code = (
        "import sys\n"
        "from ckptconv.backends import open_checkpoint\n"
        "open_checkpoint(sys.argv[1])\n"
        "print(*(name for name in sys.modules if name.startswith('ckptconv.backends.')))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(made("fsdp2_w4"))], capture_output=True, text=True, check=True
    )
    # Who recognises a folder, what looks for its files, and which of several models in a state dict is meant.
    light = {"layout", "fsdp", "torch_dist", "rank_files", "hf_shards"}
    light |= {"homes", "files", "weight_files", "nemo", "names", "states"}
    found = {tuple(name.split(".")[2:]) for name in done.stdout.split()}
    assert ("fsdp", "read") in found
    others = {f"{package}.{module}" for package, *inner in found for module in inner if package != "fsdp"}
    assert {name for name in others if name.split(".")[1] not in light} == set()
