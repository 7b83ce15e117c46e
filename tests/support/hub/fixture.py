"""The pytest fixtures: `hub` and `bench`, a fresh Hub and home; `folder`, a tiny model; `send` pushes it.

A test file names this module in `pytest_plugins`.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ckptconv.commands.push.run import Pushed, push

from .bench import Bench
from .server import TOKEN, Hub

Push = Callable[..., Pushed]


@pytest.fixture(params=["lfs", "xet"])
def hub(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub in LFS mode and in Xet mode; huggingface_hub in this process uses the same, to this Hub, as alice.

    huggingface_hub reads its environment once, when it is imported, so its constants are set instead.
    """
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf_home" / "hub"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf_home"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    running = Hub(tmp_path / "hub", request.param)
    monkeypatch.setattr(constants, "ENDPOINT", running.url)
    template = running.url + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    yield running
    running.stop()


@pytest.fixture
def bench(hub: Hub, tmp_path: Path) -> Bench:
    """The Hub and a fresh home, in the same mode."""
    return Bench(hub, tmp_path)


@pytest.fixture(scope="session")
def tiny_qwen2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen2 of 22,816 parameters in six shards."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config = Qwen2Config(**sizes, num_attention_heads=4, num_key_value_heads=2)
    Qwen2ForCausalLM(config).save_pretrained(folder, max_shard_size="20KB")
    return folder


@pytest.fixture
def folder(tiny_qwen2: Path, tmp_path: Path) -> Path:
    """A copy of the tiny model that a test may spoil."""
    return Path(shutil.copytree(tiny_qwen2, tmp_path / "OUT"))


@pytest.fixture(scope="session")
def adapter(tiny_qwen2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LoRA adapter of it, as PEFT saves one. Read it only."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folder = tmp_path_factory.mktemp("adapter") / "adapter"
    config = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM", init_lora_weights=False
    )
    get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_qwen2), config).save_pretrained(folder)
    return folder


@pytest.fixture
def send(hub: Hub, folder: Path) -> Push:
    """push(OUT, "alice/tiny", ...) to the Hub as alice."""

    def call(repo_id: str = "alice/tiny", **options: object) -> Pushed:
        return push(folder, repo_id, **{"token": TOKEN, "endpoint": hub.url, **options})  # type: ignore[arg-type]

    return call
