"""Notes the state of the files that a merge depends on, and checks the receipts next to them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping

import xxhash

from ckptconv import __version__
from ckptconv.commands.merge.small_files import SmallFiles
from ckptconv.plan import Plan
from ckptconv.publish.receipt import RECEIPT
from ckptconv.publish.receipt_check import require_agreement
from ckptconv.tensors.file_state import stamps_of
from ckptconv.tensors.look import is_file, stamp
from ckptconv.tensors.storage import FileState
from ckptconv.tensors.stored_file import path_of

# Files that state how a checkpoint's tensors are sharded, or what they are.
_SAYS_HOW = re.compile(
    r"(?:^|/)(?:\.metadata|metadata\.json|common\.pt|config\.json|\w+_config\.json|run_config\.yaml|[^/]+\.index\.json)$"
)


def sources_of(plan: Plan) -> dict[str, FileState]:
    """The state of every file that the plan depends on, from before its header was read.

    These are the files that are read, all files that hold tensors of the checkpoint (replicas and dropped ones too), and
    those that state how the tensors are sharded.

    Raises:
        CkptconvError: a file that is read has disappeared.
    """
    checkpoint = plan.checkpoint
    filled = (view for output in plan.outputs.values() for view in output.source.views)
    read = {file for view in filled for file in view.files}
    held = {file.path for file in checkpoint.files}
    for tensor in checkpoint.tensors.values():
        held.update(tensor.view.files)
        held.update(file for _, copy in tensor.replicas for file in copy.files)
    cuts = {file for file in checkpoint.stamps if _SAYS_HOW.search(file)}
    return stamps_of(read | ((held | cuts) & checkpoint.stamps.keys()), checkpoint.stamps)


def states_of(small: SmallFiles) -> dict[str, FileState]:
    """The present state of config.json and of the files that are copied next to the weights."""
    paths = [folder / name for folder, name, _ in small.copies]
    config = small.model / "config.json" if small.model is not None else None
    if config is not None and is_file(config):
        paths.append(config)
    return {str(path): stamp(path) for path in paths}


def require_honest_receipts(
    sources: Iterable[str], workers: int, say: Callable[[str], None] | None = None
) -> None:
    """Check the receipts of the folders whose weights are read.

    Args:
        sources: the files that are read.
        workers: threads that hash.
        say: called with a sentence before a folder's tensors are hashed, which reads all of them.
    """
    weights = (file for file in sources if not _SAYS_HOW.search(file))
    for folder in dict.fromkeys(path_of(file).parent for file in weights):
        if is_file(folder / RECEIPT):
            if say:
                say(f"{folder}, to compare it with its receipt")
            require_agreement(folder, workers)


def fingerprint(plan: Plan, sources: Mapping[str, FileState]) -> str:
    """What makes two plans the same for a resumed run.

    It covers every header, every source file as it was, and for every tensor all that its source is made of: the
    pieces, and for a computed one the scales, the indices and the factors as well. A source is a frozen record of plain
    values, so its repr shows each field that decides on a byte.
    """
    digest = xxhash.xxh3_128(__version__.encode())
    for out in plan.files:
        digest.update(out.name.encode() + out.header)
    for file, was in sources.items():
        digest.update(repr((file, *was)).encode())
    for key, output in sorted(plan.outputs.items()):
        digest.update(repr((key, output.dtype, output.source)).encode())
    return digest.hexdigest()
