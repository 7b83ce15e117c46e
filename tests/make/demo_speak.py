"""The merged demo model continues a sentence: python tests/make/demo_speak.py MODEL."""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

PROMPT = "The lighthouse keeper"


def main() -> None:
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1])
    words = AutoTokenizer.from_pretrained(sys.argv[1])
    with torch.inference_mode():
        out = model.generate(**words(PROMPT, return_tensors="pt"), max_new_tokens=24, do_sample=False)
    print(f"  {PROMPT} |{words.decode(out[0])[len(PROMPT) :]}")


if __name__ == "__main__":
    main()
