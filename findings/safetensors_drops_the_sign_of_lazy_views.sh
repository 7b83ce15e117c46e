#!/usr/bin/env bash
# safetensors==0.8.0, torch==2.13.0: a conjugated tensor is saved without the conjugation, a negated view without the minus.
#
# torch conjugates lazily: x.conj() shares x's memory and has a bit that says so. The imaginary part of such a tensor is a
# float32 tensor with a bit for "negated". Both are contiguous where x is, so safetensors takes them, and writes the memory
# as it is. What is loaded is x in place of its conjugate, and minus the imaginary part. No error and no warning. torch.save
# keeps the bits; tensor.numpy() refuses such tensors.
#
# Exits 0 while safetensors behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import sys

import torch
from safetensors.torch import load_file, save_file

saved = {  # tensors of their own: safetensors refuses shared memory
    "x": torch.tensor([1 + 2j]),
    "x.conj()": torch.tensor([1 + 2j]).conj(),
    "x.conj().imag": torch.tensor([1 + 2j]).conj().imag,
    "resolved": torch.tensor([1 + 2j]).conj().resolve_conj(),
}
save_file(saved, sys.argv[1] + "/out.safetensors")
torch.save(saved, sys.argv[1] + "/out.pt")
loaded, kept = load_file(sys.argv[1] + "/out.safetensors"), torch.load(sys.argv[1] + "/out.pt")
for name, tensor in saved.items():
    print(f"{name}: {tensor.item()}, loaded as {loaded[name].item()}, by torch.load {kept[name].item()}")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 2> /dev/null
"$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
x: (1+2j), loaded as (1+2j), by torch.load (1+2j)
x.conj(): (1-2j), loaded as (1+2j), by torch.load (1-2j)
x.conj().imag: -2.0, loaded as 2.0, by torch.load -2.0
resolved: (1-2j), loaded as (1-2j), by torch.load (1-2j)
SEEN
