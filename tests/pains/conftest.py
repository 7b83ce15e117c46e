"""What the tests of pains share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support.helpers import (
    Tensors,
    tensors,
)

from ckptconv.commands.merge.run import merge


@pytest.fixture
def merged(tmp_path: Path) -> Callable[..., Tensors]:
    """`merged(run, ...)`: the tensors of the folder that a merge without a dtype policy writes."""

    def run(source: Path, **options: Any) -> Tensors:
        merge(source, tmp_path / "out", **({"dtype": "keep"} | options))
        return tensors(tmp_path / "out")

    return run
