#!/usr/bin/env bash
# ctranslate2==4.8.5 (with transformers==5.24.0): a Llama 3.1 folder is converted into a model with unscaled positions.
#
# The converter knows rope_type "llama3": it notes the type, low_freq_factor and high_freq_factor. It writes the factor for
# linear scaling only, and original_max_position_embeddings not at all. The run time then takes 1 and 0 for the two, so
# that every frequency is divided by 1. The logits are those of a Llama without any rope scaling, to rounding, and far
# from those of the config. The converter does not warn.
#
# The scaling here starts at 64 positions and not 8192, so that a short text shows it.
#
# Exits 0 while ctranslate2 behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import sys
import ctranslate2
import numpy
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

source, converted = sys.argv[1] + "/hf", sys.argv[1] + "/ct2"
words = ["<s>", "</s>", "<unk>"] + [f"w{number}" for number in range(61)]
text = [3 + place % 61 for place in range(100)]
stated = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
stated["original_max_position_embeddings"] = 64


def llama(rope):
    torch.manual_seed(0)
    sizes = dict(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4)
    more = dict(num_key_value_heads=2, max_position_embeddings=512, initializer_range=0.15, bos_token_id=0, eos_token_id=1)
    return LlamaForCausalLM(LlamaConfig(**sizes, **more, rope_parameters={"rope_theta": 10000.0, **rope})).eval()


llama(stated).save_pretrained(source)
tokenizer = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
special = dict(bos_token="<s>", eos_token="</s>", unk_token="<unk>")
PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(source)
ctranslate2.converters.TransformersConverter(source).convert(converted)
answer = ctranslate2.Generator(converted).forward_batch([[words[token] for token in text]])
found = numpy.array(answer.to_device(ctranslate2.Device.cpu))[0]
for name, rope in {"as stated": stated, "unscaled": {"rope_type": "default"}}.items():
    with torch.no_grad():
        wanted = llama(rope)(torch.tensor([text])).logits[0].numpy()
    apart = abs(found - wanted).max() / abs(wanted).max()
    verdict = "equal" if apart < 1e-4 else "far" if apart > 0.1 else f"apart by {apart:.0e}"
    print(ctranslate2.__version__, "against transformers,", name + ":", verdict)
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check ctranslate2==4.8.5 transformers==5.24.0 safetensors==0.8.0 2> /dev/null
HF_HUB_OFFLINE=1 "$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | grep "against" | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
4.8.5 against transformers, as stated: far
4.8.5 against transformers, unscaled: equal
SEEN
