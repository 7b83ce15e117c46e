"""What `--ray` says before there is a cluster; none of this needs Ray."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest
from support.helpers import assert_one_error, cli, process, unpacked


def test_a_folder_is_no_address(tmp_path: Path) -> None:
    ran = cli("merge", "--ray", unpacked("megatron/qwen2_tp2"), tmp_path / "model")
    assert_one_error(ran, "--ray needs the address of a cluster", names=["auto, or HOST:PORT"])


def test_ray_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    ran = cli("merge", unpacked("megatron/qwen2_tp2"), tmp_path / "model", "--ray", "auto")
    assert_one_error(ran, "Ray is not installed", names=["pip install 'ckptconv[ray]'"])
    assert list(tmp_path.iterdir()) == []


def test_nothing_answers_there(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as taken:  # bound, and not listened at
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        ran = process("merge", unpacked("megatron/qwen2_tp2"), tmp_path / "model", "--ray", address)
    assert (ran.code, ran.out, ran.errors) == (2, "", ["error: no Ray cluster could be joined"]), ran
    assert f"in {address}" in ran.flat
    assert "ray start --head" in ran.flat
    assert list(tmp_path.iterdir()) == []
