"""Run by another environment's Python, which need not have ckptconv: a prompt through a model folder, the result as JSON.

Stdin: {"folder", "architecture", "ids", "prompt", "tokens", "dtype"}. The last line of stdout: {"version", "ids", "logits"
(float32, base64), "columns", "text", "dtype", "step", "absent"}, or {"version", "error"}. The folder's own code is not run.
"""

import base64
import json
import sys
from typing import Any


def main() -> None:
    """Read the question, answer it."""
    sys.path.pop(0)  # this file's folder: its modules are not for others
    asked = json.load(sys.stdin)
    import torch
    import transformers

    answer = {"version": transformers.__version__}
    try:
        answer.update(_run(torch, transformers, asked))
    except Exception as error:  # whatever a class makes of a folder
        answer["error"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    print(json.dumps(answer))


def _run(torch: Any, transformers: Any, asked: dict[str, Any]) -> dict[str, Any]:
    cls = getattr(transformers, asked["architecture"], None)
    if cls is None:
        raise LookupError(f"no class {asked['architecture']}")
    model, info = cls.from_pretrained(
        asked["folder"],
        torch_dtype=getattr(torch, asked["dtype"]),
        attn_implementation="eager",
        local_files_only=True,
        trust_remote_code=False,
        use_safetensors=True,
        output_loading_info=True,
    )
    model = model.eval()
    ids = torch.tensor([asked["ids"]])
    text: list[int] = []
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0]
        while len(text) < asked["tokens"]:
            last = model(input_ids=ids).logits[0, -1] if text else logits[-1]
            text.append(int(last.argmax()))
            ids = torch.cat([ids, torch.tensor([[text[-1]]])], 1)
    values = logits.float().reshape(-1, logits.shape[-1]).contiguous()
    data = bytes(values.flatten().view(torch.uint8).tolist())  # torch may be there without numpy
    return {
        "ids": _encoded(transformers, asked),
        "logits": base64.b64encode(data).decode(),
        "columns": values.shape[-1],
        "text": text,
        "dtype": str(model.dtype).split(".")[-1],
        "step": torch.finfo(model.dtype).eps,
        "absent": sorted(info["missing_keys"]),
    }


def _encoded(transformers: Any, asked: dict[str, Any]) -> Any:
    """The prompt's token ids; the error's text where the tokenizer does not load; None if none is wanted."""
    if not asked["prompt"]:
        return None
    try:
        load = transformers.AutoTokenizer.from_pretrained
        tokenizer = load(asked["folder"], local_files_only=True, trust_remote_code=False)
        return list(tokenizer(asked["prompt"])["input_ids"])
    except Exception as error:
        return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


if __name__ == "__main__":
    main()
