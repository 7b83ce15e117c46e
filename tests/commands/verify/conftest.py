"""Copies of checkpoints and merged folders, to change."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.verify_tools import Made

from ckptconv.commands.merge.run import merge


@pytest.fixture
def copied(made: Made, tmp_path: Path) -> Callable[..., Path]:
    """A copy of a variant, or of a folder in it, to change."""

    def copy(variant: str, part: str = "") -> Path:
        target = tmp_path / f"{variant}-{part or 'all'}"
        shutil.copytree(made(variant) / part, target)
        return target

    return copy


@pytest.fixture(scope="session")
def merged_once(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    done: dict[str, Path] = {}

    def folder(variant: str) -> Path:
        if variant not in done:
            done[variant] = tmp_path_factory.mktemp("merged") / variant
            merge(made(variant), done[variant])
        return done[variant]

    return folder


@pytest.fixture
def merged(merged_once: Callable[[str], Path], tmp_path: Path) -> Callable[[str], Path]:
    """A merged model folder, to change."""

    def copy(variant: str) -> Path:
        return Path(shutil.copytree(merged_once(variant), tmp_path / f"merged-{variant}"))

    return copy
