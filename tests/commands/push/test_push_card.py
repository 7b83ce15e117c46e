"""The model card of a push, from the receipts of real merges."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from support.helpers import FIXTURES, edit_json, unpacked
from support.hub import Hub

from ckptconv.commands.merge.run import merge
from ckptconv.commands.push.card import is_untouched, model_card
from ckptconv.commands.push.folder import check_folder, check_structure
from ckptconv.commands.push.private import cleaned
from ckptconv.commands.push.run import Pushed
from ckptconv.errors import CkptconvError

Push = Callable[..., Pushed]

pytest_plugins = ["support.hub.fixture"]

VERL = FIXTURES / "verl_fsdp2_w4" / "run"


def card_of(folder: Path) -> str:
    """The card, which huggingface_hub finds valid and is_untouched knows again."""
    check_structure(folder)
    text = model_card(check_folder(folder), "me/model")
    assert is_untouched(text)
    assert not is_untouched(text.replace("# model", "# My model"))
    assert ModelCard(text).data.to_dict()["library_name"] in ("transformers", "peft")
    return text


def test_a_critic_of_verl(tmp_path: Path) -> None:
    merge(VERL / "global_step_2" / "critic", tmp_path / "out")
    card = card_of(tmp_path / "out")
    digest = hashlib.sha256((tmp_path / "out" / "ckptconv.json").read_bytes()).hexdigest()
    for text in (
        "library_name: transformers\ntags:\n- ckptconv\n- verl\n---",
        "Converted from a verl checkpoint with `ckptconv` ",
        "| Architecture | Qwen2ForTokenClassification |",
        "| Trainer | verl |",
        "| Checkpoint | verl FSDP2, one file per rank |",
        "| Step | 2 |",
        "| Role | critic |",
        "| Saved by | 4 ranks, fsdp 4 |",
        "| Elements | 15,818 bfloat16 |",
        "| Conversion | 28 tensors float32 → bfloat16 |",
        "| Left out | optimizer, trainer state (not part of the model); storage padding (belongs to no tensor) |",
        'AutoModelForTokenClassification.from_pretrained("me/model")',
        "- the checkpoint has a value head (score.weight): architectures is set to Qwen2ForTokenClassification",
        f"holds the xxh3-128 of each of the 28 tensors; its own sha256 is `{digest}`.",
        "`ckptconv verify me/model`",
    ):
        assert text in card, card
    assert "Base model" not in card, "no file says it"


def test_megatron_and_deepspeed(tmp_path: Path) -> None:
    merge(unpacked("megatron/critic_tp2") / "run", tmp_path / "megatron")
    card = card_of(tmp_path / "megatron")
    assert "| Saved by | 4 ranks, tp 2 × pp 2 |" in card
    assert "| Conversion | 39 tensors bfloat16 as stored |" in card
    merge(unpacked("deepspeed_trainer_z2_w2") / "run", tmp_path / "deepspeed")
    card = card_of(tmp_path / "deepspeed")
    assert "- deepspeed\n" in card
    assert "| Checkpoint | DeepSpeed ZeRO-2 checkpoint |" in card
    assert "| Step | 7 |" in card


def test_an_adapter(tmp_path: Path) -> None:
    merge(FIXTURES / "verl_lora_only_w2" / "run", tmp_path / "out")
    card = card_of(tmp_path / "out")
    assert "library_name: peft\ntags:\n- ckptconv\n- verl\n- lora\n" in card
    assert 'PeftModel.from_pretrained(base, "me/model")' in card
    edit_json(tmp_path / "out" / "adapter_config.json", base_model_name_or_path="Qwen/Qwen2-0.5B")
    card = card_of(tmp_path / "out")
    assert card.startswith("---\nbase_model: Qwen/Qwen2-0.5B\n")
    assert "| Base model | Qwen/Qwen2-0.5B |" in card
    assert 'AutoPeftModelForCausalLM.from_pretrained("me/model")' in card


@pytest.mark.parametrize(
    ("said", "front", "row"),
    [
        ("Qwen/Qwen2-0.5B", "base_model: Qwen/Qwen2-0.5B\n", "| Base model | Qwen/Qwen2-0.5B |"),
        (
            "/home/me/hub/models--Qwen--Qwen2-0.5B/snapshots/1f",
            "base_model: Qwen/Qwen2-0.5B\n",
            "| Qwen/Qwen2-0.5B |",
        ),
        ("/mnt/secret/Qwen2-7B", "", "| Base model | Qwen2-7B |"),
    ],
)
def test_the_base_model_is_a_name_and_no_path(folder: Path, said: str, front: str, row: str) -> None:
    (folder / "ckptconv.json").write_text(
        json.dumps({"base_model": said, "notes": ["taken from /mnt/secret/x"], "tensors": {}, "files": {}})
    )
    card = card_of(folder)
    assert front in card
    assert ("base_model:" in card) == bool(front)
    assert row in card
    assert "/mnt" not in card
    assert "/home" not in card


@pytest.mark.parametrize(
    "receipt",
    [
        {"source": 3, "dtype": None, "base_model": "/mnt/x"},
        {
            "source": {"mesh": {"tp": 2}, "layout": 7},
            "dtype": {"casts": [1, [2]]},
            "dropped": [3],
            "notes": {"a": 1},
        },
    ],
)
def test_an_odd_receipt(folder: Path, receipt: dict) -> None:
    (folder / "ckptconv.json").write_text(json.dumps({**receipt, "tensors": {}, "files": {}}))
    assert card_of(folder)


@pytest.mark.parametrize(
    ("receipt", "what"),
    [("[]", "not a receipt"), ("{", "not valid JSON"), ('{"source": 3, "files": [1]}', "not a receipt")],
)
def test_what_is_not_a_receipt_is_not_published(folder: Path, receipt: str, what: str) -> None:
    (folder / "ckptconv.json").write_text(receipt)
    with pytest.raises(CkptconvError, match=what):
        check_folder(folder)


def test_what_would_break_a_table(folder: Path) -> None:
    source = {"layout": "odd|name\n# x", "step": "<b>"}
    (folder / "ckptconv.json").write_text(json.dumps({"source": source, "tensors": {}, "files": {}}))
    assert "| Checkpoint | odd\\|name \\# x |" in card_of(folder)


@pytest.mark.parametrize(
    ("config", "line"),
    [
        (
            {"architectures": ["Qwen2ForSequenceClassification"]},
            "AutoModelForSequenceClassification.from_pretrained",
        ),
        ({"architectures": ["Qwen2Model"]}, "AutoModel.from_pretrained"),
        ({"auto_map": {"AutoModel": "m.M"}}, 'from_pretrained("me/model", trust_remote_code=True)'),
    ],
)
def test_the_lines_that_load_it(folder: Path, config: dict, line: str) -> None:
    from ckptconv.commands.push.folder import ModelFolder
    from ckptconv.commands.push.loading import snippet

    known = {"architectures": ["Qwen2ForCausalLM"], **config}
    assert line in snippet(ModelFolder(folder, known, {}, {}, 0), "me/model", None)


HOSTILE = (
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[click](javascript:alert(1))",
    "![](https://example.com/pixel.png)",
    "https://example.com/login",
    "www.example.com",
    "a@example.com",
    "`x` **bold** _em_ ~~gone~~ $x$",
    "&lt;b&gt; | cell | # head",
)


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_a_checkpoint_is_markdown_or_html_in_the_card(folder: Path, text: str) -> None:
    """Seen through a Markdown renderer with tables, raw HTML and bare addresses, as the Hub has them."""
    import html

    from markdown_it import MarkdownIt

    receipt = {
        "ckptconv": text,
        "source": {"layout": text, "step": text, "role": text, "mesh": [text], "trainer": text},
        "notes": [text],
        "skipped": [{"name": text, "reason": text}],
        "tensors": {},
        "files": {},
    }
    (folder / "ckptconv.json").write_text(json.dumps(receipt))
    card = model_card(check_folder(folder), "me/model")
    shown = MarkdownIt("commonmark", {"html": True}).enable("table").render(card.split("---", 2)[2])
    for tag in ("<script", "<img", "<a ", "<em", "<strong", "<del", "<h1>head"):
        assert tag not in shown, shown
    assert html.escape(text, quote=False) in shown.replace("\u200b", "").replace("&quot;", '"'), shown
    assert shown.count("<table>") == 1
    assert not re.search(
        r"(https?|ftp|mailto):(?!\u200b)", shown.split("<code", 1)[0].replace(":\u200b", "")
    ), shown


def test_a_push_takes_the_paths_of_this_machine_out_of_what_it_sends(
    hub: Hub, send: Push, folder: Path
) -> None:
    edit_json(folder / "config.json", _name_or_path="/home/ann/models/base")
    (folder / "tokenizer_config.json").write_text("{}")
    edit_json(
        folder / "tokenizer_config.json",
        name_or_path="/home/ann/tokenizer",
        tokenizer_file="/home/ann/.cache/huggingface/hub/models--org--base/snapshots/1/tokenizer.json",
        chat_template="{{ '/home/ann/' }}",
    )
    note = "frozen weights come from /home/ann/base/model.safetensors"
    receipt = {
        "source": {"folder": "home/ann/run", "step": 2},
        "tensors": {"x": {}},
        "files": {},
        "notes": [note],
    }
    (folder / "ckptconv.json").write_text(json.dumps(receipt))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    done = send()
    commit = hub.store.repos["alice/tiny"].commits[str(done.commit)]
    sent = {name: file.data or b"" for name, file in commit.files.items()}
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    whole = b"".join(data for name, data in sent.items() if name.endswith((".json", ".md")))
    assert whole.count(b"/home/ann") == 1, "the template is the tokenizer's"
    assert json.loads(sent["config.json"]).keys() == json.loads(before["config.json"]).keys() - {
        "_name_or_path"
    }
    assert json.loads(sent["ckptconv.json"])["notes"] == ["frozen weights come from model.safetensors"]
    assert json.loads(sent["ckptconv.json"])["source"] == {"step": 2}
    assert set(done.removed) == {
        "config.json: _name_or_path",
        "tokenizer_config.json: name_or_path, tokenizer_file",
        "ckptconv.json: source.folder, notes",
    }
    assert hashlib.sha256(sent["ckptconv.json"]).hexdigest().encode() in sent["README.md"]


def test_a_folder_of_the_hubs_cache_becomes_its_repository(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        _name_or_path="/home/ann/.cache/huggingface/hub/models--org--base/snapshots/1",
    )
    found = cleaned(folder, ["config.json"])["config.json"]
    assert json.loads(found.text)["_name_or_path"] == "org/base"


def test_a_folder_that_names_no_path_is_sent_as_it_is(folder: Path) -> None:
    edit_json(folder / "config.json", _name_or_path="org/base")
    assert cleaned(folder, [path.name for path in folder.iterdir()]) == {}
