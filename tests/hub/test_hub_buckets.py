"""hf://buckets/ORG/NAME/FOLDER: a bucket on the Hub is a store like the others, over real HTTP."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.helpers import cli
from support.hub import OTHER_TOKEN, Hub
from support.hub.server import TOKEN
from support.store.same import compare

from ckptconv import CkptconvError, inspect, merge
from ckptconv.hub.names import RepoName
from ckptconv.hub.reading import asked
from ckptconv.hub.source import located
from ckptconv.storage import is_address
from ckptconv.storage.address import Address, address_of
from ckptconv.storage.errors import Unavailable
from ckptconv.tensors.stored_file import far_of

pytest_plugins = ["support.hub.fixture"]

Made = Callable[[str], Path]
ADDRESS = "hf://buckets/alice/runs/a/run"


@pytest.fixture(params=["lfs"])
def hub(hub: Hub) -> Hub:
    """One mode: buckets have one way to be read."""
    pytest.importorskip("huggingface_hub._buckets", reason="this huggingface_hub does not know buckets")
    return hub


def put(hub: Hub, folder: Path, key: str = "a/run") -> str:
    files = hub.store.buckets.setdefault("alice/runs", {})
    files |= {
        f"{key}/{p.relative_to(folder).as_posix()}": p.read_bytes() for p in folder.rglob("*") if p.is_file()
    }
    return f"hf://buckets/alice/runs/{key}"


@pytest.mark.parametrize("variant", ["fsdp2_w4", "dcp_tp_w4"])
def test_the_same_as_from_a_disk(hub: Hub, made: Made, variant: str, tmp_path: Path) -> None:
    folder = made(variant) / "run" if variant.startswith("dcp") else made(variant)
    address = put(hub, folder)
    put(hub, folder, "a/run-2")
    compare(folder, address, tmp_path)
    assert not list((tmp_path / "hf_home").rglob("*.pt")), "nothing is downloaded into the cache"
    reads = hub.requests("^GET /storage/")
    assert reads
    assert all(seen.status == 206 for seen in reads)
    assert not any("authorization" in map(str.lower, seen.headers) for seen in reads)


def test_few_requests(hub: Hub, made: Made) -> None:
    address = put(hub, made("fsdp2_w4"))
    hub.seen.clear()
    assert inspect(address).tensors == inspect(made("fsdp2_w4")).tensors
    per_file = Counter(seen.path for seen in hub.requests("/resolve/.*[.]pt$"))
    assert len(per_file) == 4
    assert max(per_file.values()) <= 8
    assert len(hub.requests("/tree")) <= 4


def test_a_listing_of_several_pages(hub: Hub, made: Made) -> None:
    address = put(hub, made("fsdp2_w4"))
    hub.store.buckets["alice/runs"] |= {f"a/run/global_step_7/aa_{n:05}.log": b"x" for n in range(1200)}
    assert inspect(address).tensors == inspect(made("fsdp2_w4")).tensors
    assert hub.requests("cursor=1000")


def test_one_file_and_a_bucket_itself(hub: Hub, made: Made) -> None:
    put(hub, made("fsdp2_w4") / "hub", "model")
    assert inspect("hf://buckets/alice/runs/model/model.safetensors").tensors > 20
    hub.store.buckets["alice/whole"] = {
        path.name: path.read_bytes() for path in (made("fsdp2_w4") / "hub").iterdir()
    }
    assert inspect("hf://buckets/alice/whole").tensors > 20


def test_steps_and_a_checkpoint_to_verify_against(hub: Hub, made: Made, tmp_path: Path) -> None:
    address = put(hub, made("fsdp2_w4"))
    assert cli("merge", address, tmp_path / "model").code == 0
    ran = cli("verify", tmp_path / "model", "--against", address)
    assert ran.code == 0, ran.out + ran.err
    assert cli("merge", address, tmp_path / "steps", "--all-steps").code == 0
    assert (tmp_path / "steps" / "global_step_7" / "config.json").is_file()


def test_a_file_that_is_replaced_is_refused(hub: Hub, made: Made, tmp_path: Path) -> None:
    address = put(hub, made("fsdp2_w4"))
    far = far_of(located(address) / "global_step_7" / "actor" / "model_world_size_4_rank_1.pt")
    assert far is not None
    name = "a/run/global_step_7/actor/model_world_size_4_rank_1.pt"
    files = hub.store.buckets["alice/runs"]
    files[name] = bytes(len(files[name]))
    with pytest.raises(CkptconvError, match="changed while it was read"):
        far.read(0, 10)
    assert far.group.states_now([far]) != [far.state]


def test_a_file_that_is_replaced_during_the_copy(hub: Hub, made: Made, tmp_path: Path) -> None:
    address = put(hub, made("fsdp2_w4"))
    name = "a/run/global_step_7/actor/model_world_size_4_rank_1.pt"

    def replace(plan: object) -> None:
        files = hub.store.buckets["alice/runs"]
        files[name] = files[name][:-1] + b"0"

    with pytest.raises(CkptconvError, match="changed while it was read"):
        merge(address, tmp_path / "model", on_plan=replace)
    assert not (tmp_path / "model").exists()


def refused(*words: object) -> str:
    ran = cli(*words)
    assert ran.code == 2, ran.out
    assert "Traceback" not in ran.err
    assert TOKEN not in ran.err
    return ran.err


def test_what_is_refused(hub: Hub, made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    put(hub, made("fsdp2_w4"))
    assert "no such folder" in refused("inspect", "hf://buckets/alice/runs/b")
    assert "there is no bucket buckets/alice/none" in refused("inspect", "hf://buckets/alice/none/run")
    assert "hf buckets sync" in refused("merge", made("fsdp2_w4"), ADDRESS)
    assert "hf://buckets/ORG/NAME" in refused("inspect", "hf://buckets/alice")
    monkeypatch.setenv("HF_TOKEN", OTHER_TOKEN)
    assert "hf auth login" in refused("inspect", ADDRESS)
    assert not any(path.name.startswith("hf:") for path in tmp_path.iterdir())


def test_a_server_that_fails_once(hub: Hub, made: Made) -> None:
    address = put(hub, made("fsdp2_w4"))
    hub.fail("GET /storage/", 503, skip=2)
    assert inspect(address).tensors > 20


def test_a_server_without_ranges(hub: Hub, made: Made) -> None:
    address = put(hub, made("fsdp2_w4"))
    hub.ignore_ranges = True
    assert "does not support range requests" in refused("inspect", address)


class ConnectError(Exception):
    """Has the name of httpx's."""


class Answered(Exception):
    """An error of the HTTP library for an answer."""

    def __init__(self, status: int) -> None:
        super().__init__(f"status {status}")
        self.response = SimpleNamespace(status_code=status)


@pytest.mark.parametrize(
    ("error", "fails"),
    [
        (ConnectError(), True),
        (Answered(503), True),
        (Answered(429), True),
        (Answered(403), False),
        (Answered(404), False),
    ],
)
def test_a_hub_that_fails_is_told_from_one_that_refuses(error: Exception, fails: bool) -> None:
    """A read that fails is an error of the whole merge, and what is refused may be a file that nobody needs."""

    def step() -> None:
        raise error

    with pytest.raises(CkptconvError) as caught:
        asked(RepoName("alice/runs"), step)
    assert isinstance(caught.value, Unavailable) is fails


def test_addresses() -> None:
    for text in ("hf://buckets/a/b/c/d", "hf:/buckets/a/b/c/d/"):
        assert is_address(text)
        assert address_of(text) == Address("hf", "buckets/a/b", "c/d")
        assert str(address_of(text)) == "hf://buckets/a/b/c/d"
    assert not is_address("hf://org/name")


def test_a_bucket_is_refused_offline(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CkptconvError, match="HF_HUB_OFFLINE is set, and a bucket is never in the cache"):
        inspect(ADDRESS)
    assert not hub.requests("")
