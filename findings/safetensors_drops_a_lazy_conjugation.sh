#!/usr/bin/env bash
# safetensors==0.8.0, torch==2.13.0: save_file of x.conj() stores x, without an error.
#
# torch conjugates lazily: x.conj() has the bytes of x and a flag. torch.save writes the flag, and numpy refuses such a
# tensor. safetensors.torch.save_file reads the bytes alone, so that the file has the opposite sign in every imaginary part. A
# complex buffer, such as the frequencies that some rotary embeddings keep, changes on its way through a model folder.
#
# Seen: torch.save keeps the conjugate: True; the safetensors file has it: False, it has x: True; after .resolve_conj() the
# file has the conjugate: True.
#
# Exits 0 while safetensors behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check safetensors==0.8.0 numpy==2.4.6 2> /dev/null
cat > "$here/try.py" <<'PY'
import sys
import torch
from safetensors.torch import load_file, save_file

folder = sys.argv[1]
frequencies = torch.polar(torch.ones(4), torch.arange(1.0, 5.0))


def through(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What comes back from a .pt file, and from a safetensors file."""
    torch.save({"x": tensor}, f"{folder}/x.pt")
    save_file({"x": tensor}, f"{folder}/x.safetensors")
    return torch.load(f"{folder}/x.pt")["x"], load_file(f"{folder}/x.safetensors")["x"]


def same(one: torch.Tensor, two: torch.Tensor) -> bool:
    return torch.equal(one.resolve_conj(), two.resolve_conj())


conjugate = frequencies.conj()
pt, safe = through(conjugate)
kept, lost, plain = same(pt, conjugate), not same(safe, conjugate), same(safe, frequencies)
print("torch.save keeps the conjugate:", kept, "| the safetensors file has it:", not lost, "| it has x:", plain)
_, resolved = through(conjugate.resolve_conj())
print("after .resolve_conj() the file has the conjugate:", same(resolved, conjugate))
sys.exit(not (kept and lost and plain and same(resolved, conjugate)))
PY
"$here/env/bin/python" "$here/try.py" "$here"
