"""--logits: both models run with transformers, one after the other, and say the same or not."""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from support.verify_tools import Made, Q, edit_config, only_wrong, problems, rewrite, states

from ckptconv.commands.merge.run import merge
from ckptconv.commands.progress import Progress
from ckptconv.commands.verify import Layer, Verified, verify
from ckptconv.errors import CkptconvError
from ckptconv.plan import Options


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models on busy machines: several threads wait for one another most of the time."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def behaviour(result: Verified) -> Layer:
    found = result.layer("behaviour")
    assert found is not None
    return found


def tokenizer(folder: Path, words: str = "the capital of france is paris a b c d e f g") -> None:
    """A tokenizer of whole words, by tokenizers."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    table = {word: n for n, word in enumerate(["<unk>", *words.split()])}
    made = Tokenizer(models.WordLevel(table, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=made, unk_token="<unk>").save_pretrained(folder)


def test_alone(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    result = verify(out, logits=True)
    only_wrong(result)
    said = behaviour(result)
    assert "12 × 101 logits in float32, perplexity of the prompt" in said.found
    assert said.notes[0] == "no tokenizer: the prompt is a fixed sequence of tokens"
    assert said.notes[-1].startswith("greedy: tokens ")
    tokenizer(out)
    from transformers import AutoTokenizer

    number = len(AutoTokenizer.from_pretrained(out)("paris is the capital")["input_ids"])
    said = behaviour(verify(out, logits=True, prompt="paris is the capital"))
    assert f"{number} × 101 logits" in said.found
    assert number != 12
    assert said.notes[-1].startswith("greedy: '")


def test_perplexity_and_greedy_text_are_transformers_own(made: Made) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    hub = made("fsdp2_w4") / "hub"
    said = behaviour(verify(hub, logits=True))
    model = AutoModelForCausalLM.from_pretrained(hub)
    ids = torch.tensor([[(7 * n + 3) % 101 for n in range(12)]])
    with torch.no_grad():
        wanted = float(model(ids, labels=ids).loss.exp())
        text = model.generate(ids, max_new_tokens=16, min_new_tokens=16, do_sample=False, eos_token_id=None)
    assert f"perplexity of the prompt {wanted:,.1f}" in said.found
    assert said.notes[-1] == "greedy: tokens " + " ".join(map(str, text[0, 12:].tolist()))


def test_the_same_model_from_ranks_and_from_a_folder(made: Made, merged_once: Callable[[str], Path]) -> None:
    steps: list[Progress] = []
    result = verify(merged_once("fsdp2_w4"), against=made("fsdp2_w4"), logits=True, on_progress=steps.append)
    only_wrong(result)
    assert "logits equal bit for bit in bfloat16, 12 of 12 likeliest tokens agree" in behaviour(result).found
    phases = [step.what for step in steps if step.phase == "run"]
    assert any("temporary folder" in phase for phase in phases)
    assert sum("with transformers" in phase for phase in phases) == 2


def test_masters_run_in_the_dtype_of_the_folder(made: Made) -> None:
    result = verify(made("fsdp2_w4"), against=made("fsdp2_w4") / "hub", logits=True)
    only_wrong(result)
    assert "logits equal bit for bit in float32" in behaviour(result).found


def test_permuted_queries_are_found_by_what_the_model_does(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    rewrite(out, lambda tensors: tensors.update({Q: np.ascontiguousarray(tensors[Q][::-1]) * 8}))
    result = verify(out, against=made("fsdp2_w4") / "hub", logits=True)
    only_wrong(result, "values", "behaviour")
    assert "differ by up to" in problems(result, "behaviour")["logits"]


def test_a_tolerance_asks_for_the_same_tokens_only(made: Made, copied: Callable[..., Path]) -> None:
    out, hub = copied("fsdp2_w4", "hub"), made("fsdp2_w4") / "hub"
    rewrite(out, lambda tensors: tensors[Q].__imul__(np.float32(1.0001)))
    only_wrong(verify(out, against=hub, logits=True), "values", "behaviour")
    result = verify(out, against=hub, logits=True, rtol=1e-3)
    only_wrong(result)
    assert "logits differ by up to" in behaviour(result).found
    assert "rounding" not in behaviour(result).found


def test_nan_in_the_logits(copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    rewrite(out, lambda tensors: tensors["model.norm.weight"].fill(np.nan))
    result = verify(out, logits=True)
    only_wrong(result, "sanity", "behaviour")
    assert "are NaN or Inf" in problems(result, "behaviour")["logits"]


def test_a_weight_that_is_not_there_is_not_made_up(copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    rewrite(out, lambda tensors: tensors.__delitem__(Q))
    result = verify(out, logits=True)
    only_wrong(result, "names")
    assert "missing" in problems(result, "names")[Q]
    assert states(result)["behaviour"] is None  # nothing runs a model that is not whole


def test_heads_that_are_no_language_model(made: Made) -> None:
    """A token classifier has logits and no text; so it is compared."""
    result = verify(made("critic_w2"), against=made("critic_w2") / "hub", logits=True, atol=1)
    only_wrong(result)
    assert "12 of 12" in behaviour(result).found
    assert not any("both:" in note for note in behaviour(result).notes)


def test_a_sequence_classifier(tmp_path: Path) -> None:
    from make.configs import BASE
    from transformers import AutoConfig, AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_config(
        AutoConfig.for_model("qwen2", **BASE, num_labels=3)
    )
    model.save_pretrained(tmp_path / "out")
    result = verify(tmp_path / "out", logits=True)
    only_wrong(result)
    assert "1 × 3 logits" in behaviour(result).found


def test_a_vision_language_model_on_text(made: Made) -> None:
    said = behaviour(verify(made("qwen2_5_vl_w4") / "hub", logits=True))
    assert said.ok, said
    assert any(note.startswith("greedy: ") for note in said.notes)


def test_experts_in_a_modules_names(made: Made, tmp_path: Path) -> None:
    merge(made("qwen3_moe_w4"), tmp_path / "module", options=Options(layout="module", dtype="keep"))
    result = verify(tmp_path / "module", against=made("qwen3_moe_w4") / "hub", logits=True)
    only_wrong(result)
    assert "bit for bit" in behaviour(result).found or "no more than rounding" in behaviour(result).found


def test_an_adapter_runs_with_its_base(made: Made) -> None:
    peft, base = made("lora_w4") / "adapter", made("lora_w4") / "base"
    result = verify(peft, against=peft, base=base, logits=True)
    assert behaviour(result).ok, result.layers
    result = verify(peft, against=peft, logits=True)
    only_wrong(result)
    assert "name it with --base" in behaviour(result).found


def test_a_model_with_code_of_its_own_is_not_run(copied: Callable[..., Path], tmp_path: Path) -> None:
    out = copied("fsdp2_w4", "hub")
    (out / "modeling_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (out / "tokenization_mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    (out / "custom_generate").mkdir()
    shutil.copy(out / "modeling_mine.py", out / "custom_generate" / "generate.py")
    mine = {"AutoConfig": "modeling_mine.Config", "AutoModelForCausalLM": "modeling_mine.Model"}
    edit_config(out, auto_map=mine)
    words = {"tokenizer_class": "Mine", "auto_map": {"AutoTokenizer": ["tokenization_mine.Mine", None]}}
    (out / "tokenizer_config.json").write_text(json.dumps(words))
    assert behaviour(verify(out, logits=True)).ok, "transformers has a class of its own for it"
    edit_config(out, model_type="mine", architectures=["Mine"])
    result = verify(out, logits=True)
    assert states(result)["behaviour"] is None
    assert behaviour(result).found == "skipped: the model brings its own code, which is not run"
    assert not (tmp_path / "ran").exists()


def test_tokenizers_that_differ_are_reported(made: Made, copied: Callable[..., Path]) -> None:
    out = copied("fsdp2_w4", "hub")
    reference = Path(shutil.copytree(out, out.with_name("reference")))
    tokenizer(out)
    tokenizer(reference, "paris the capital of france is")
    result = verify(out, against=reference, logits=True, prompt="the capital of france is")
    only_wrong(result, "behaviour")
    assert "encodes the prompt differently" in problems(result, "behaviour")["tokenizer"]


def test_a_device_that_is_not_there(made: Made) -> None:
    with pytest.raises(CkptconvError, match="torch has no device cuda:9 here"):
        verify(made("fsdp2_w4") / "hub", logits=True, device="cuda:9")
    with pytest.raises(CkptconvError, match="torch has no device toaster here"):
        verify(made("fsdp2_w4") / "hub", logits=True, device="toaster")
