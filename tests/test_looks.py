"""Who may ask the system about files, read from the sources: the content of inputs is looked at through `tensors.look`.

A path may name a place in a store, where pathlib's methods and os's functions find nothing. What is written (outputs, locks,
scratch files) and the user's own machine are on a disk; the modules that handle these are listed here.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import ckptconv

SOURCES = Path(ckptconv.__file__).parent
METHODS = {
    "exists", "glob", "is_block_device", "is_char_device", "is_dir", "is_fifo", "is_file", "is_junction", "is_mount",
    "is_socket", "is_symlink", "iterdir", "lstat", "open", "owner", "read_bytes", "read_text", "readlink", "resolve",
    "rglob", "samefile", "stat",
    "chmod", "hardlink_to", "mkdir", "rmdir", "symlink_to", "touch", "unlink", "write_bytes", "write_text",
}  # fmt: skip
# What of `os` touches no file. Everything else of it does.
PURE = {"os.PathLike", "os.cpu_count", "os.environ", "os.sched_getaffinity", "os.strerror", "os.urandom", "os.path.abspath",
        "os.path.basename", "os.path.commonpath", "os.path.dirname", "os.path.join"}  # fmt: skip
MODULES = {"fileinput", "glob", "linecache", "mmap", "shutil", "tarfile", "tempfile", "zipfile"}
# Modules that may do everything: the one that asks the system, and those of outputs and of this machine.
FREE = {
    "tensors/disk.py",
    "__main__.py", "errors.py", "show/export.py", "show/sink.py",
    "copy/finished.py", "copy/output_file.py", "copy/run.py",
    "publish/durable.py", "publish/locks.py", "publish/target.py", "publish/work.py",
    "commands/merge/check.py",
    # push reads disks alone
    "commands/push/card.py", "commands/push/folder.py", "commands/push/hub.py", "commands/push/run.py",
    "engines/job.py", "engines/on_ray.py",  # the nodes share a disk
    "hub/fetch.py",  # huggingface_hub's cache
    "storage/open.py",  # a folder on the disk whose name looks like an address
}  # fmt: skip
# What single modules may do.
EXCUSED = {
    # The storage of a path, which is not always the disk.
    "tensors/look.py": {f"storage_of({path}).{name}" for path, name in [
        ("path", "exists"), ("path", "is_dir"), ("path", "is_file"), ("file", "open"),
    ]} | {"DISK.open"},
    "storage/tree.py": {"self.is_dir", "self.is_file"},
    # A scratch file of its own, without a name.
    "backends/orbax/decoded.py": {"os.fstatvfs", "os.preadv", "os.pwrite", "tempfile"},
    # tensorstore's own files and databases.
    "backends/orbax/arrays.py": {"self._ts.open", "self._ts.KvStore.open"},
    # A copy of a header for safetensors' own reader, which takes files of a disk alone.
    "formats/safetensors.py": {"tempfile"},
    # Data of this package, and transformers' sources.
    "models/skeleton.py": {"_DATA.is_file", "_DATA.read_bytes", "zipfile"},
    "models/installed.py": {"source.is_file", "source.read_text"},
    # The output.
    "publish/assets.py": {"shutil", "target.parent.mkdir", "target.open", "(target / 'config.json').write_text"},
    "commands/merge/in_place.py": {"(target / name).is_symlink", "os.walk"},
    "commands/merge/small_files.py": {"path.unlink", "work.rglob", "(work / RECEIPT).write_text", "(work / name).write_text",
                                      "(work / shards.INDEX).write_bytes", "(work / target).write_bytes"},
    # Memory, the process itself, and folders for other programs.
    "read/workers.py": {"mmap"},  # address space
    "storage/objects.py": {"mmap"},
    "commands/merge/run.py": {"Path('/proc/self/status').read_text"},
    "commands/verify/elsewhere.py": {"os.fspath"},
    "commands/verify/model_runner.py": {"tempfile"},
    # Whether a text that may name a repository or a bucket is a path on this disk.
    "hub/names.py": {"Path(text).is_dir", "Path(text).expanduser().exists"},
    "hub/source.py": {"Path(path).exists"},
    "hub/storage.py": {"(self._small() / item.key).read_bytes"},  # huggingface_hub's cache
    "commands/planning.py": {"Path(name).is_dir"},
    "commands/push/private.py": {"Path(value).is_dir"},
    "cli/values.py": {"info.exists"},  # typer's option of that name
}  # fmt: skip


def looks_of(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """What touches a disk in a module, as (text, line)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom) and (
            node.module in MODULES or node.module in ("os", "os.path")
        ):
            yield str(node.module), node.lineno
        elif isinstance(node, ast.Name) and node.id == "open" and isinstance(node.ctx, ast.Load):
            yield "open", node.lineno
        elif isinstance(node, ast.Attribute):
            text = ast.unparse(node)
            is_of_os = text.rpartition(".")[0] in ("os", "os.path") and text != "os.path"
            if text not in PURE if is_of_os else node.attr in METHODS and "__file__" not in text:
                yield text, node.lineno


def looks_in(name: str) -> list[tuple[str, int]]:
    return list(looks_of(ast.parse((SOURCES / name).read_text(encoding="utf-8"))))


def test_only_the_disk_itself_asks_the_system_about_inputs() -> None:
    names = {path.relative_to(SOURCES).as_posix() for path in SOURCES.rglob("*.py")}
    assert names > FREE
    wrong = [
        f"{name}:{line}: {text}"
        for name in sorted(names - FREE)
        for text, line in looks_in(name)
        if text not in EXCUSED.get(name, ())
    ]
    assert wrong == [], "use the functions of ckptconv/tensors/look.py"


def test_no_module_of_inputs_is_free() -> None:
    rooms = (
        "backends/",
        "formats/",
        "models/",
        "read/",
        "plan/",
        "compute/",
        "commands/inspect/",
        "commands/verify/",
    )
    assert [name for name in FREE if name.startswith(rooms)] == []


def test_every_excuse_is_needed() -> None:
    for name, excused in EXCUSED.items():
        assert {text for text, _ in looks_in(name)} >= excused, name
    assert [name for name in FREE if not looks_in(name)] == []


@pytest.mark.parametrize(
    "line",
    [
        "path.is_file()",
        "(folder / 'config.json').exists()",
        "any(map(Path.is_dir, folders))",
        "sorted(folder.iterdir())",
        "folder.glob('*.pt')",
        "path.stat().st_size",
        "path_of(file).open('rb')",
        "open(path, 'rb')",
        "os.stat(path)",
        "os.listdir(folder)",
        "os.path.isfile(path)",
        "os.open(path, os.O_RDONLY)",
        "from os import scandir",
        "from os.path import exists",
        "import shutil",
        "from tempfile import NamedTemporaryFile",
    ],
)
def test_a_look_of_any_kind_is_seen(line: str) -> None:
    assert list(looks_of(ast.parse(line)))


@pytest.mark.parametrize(
    "line",
    [
        "is_file(folder / 'config.json')",
        "folder.parent / path.with_suffix('.json').name",
        "os.path.basename(path)",
        "Path(__file__).with_name('facts.json').read_text('utf-8')",
        "'a'.replace('b', 'c')",
    ],
)
def test_names_of_places_are_no_looks(line: str) -> None:
    assert not list(looks_of(ast.parse(line)))
