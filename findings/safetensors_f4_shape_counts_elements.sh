#!/usr/bin/env bash
# safetensors==0.8.0 with torch==2.13.0: a packed 4-bit tensor has one shape in the file and another in torch, and cannot be sliced.
#
# torch.float4_e2m1fn_x2 packs two values into a byte and counts bytes in its shape: (3, 8). save_file writes dtype F4 and the
# shape [3, 16], which counts values. get_tensor halves the last dim again, but get_slice does not: it states [3, 16], and
# every index, even whole rows, raises an error about a shape that does not fit. A reader that takes shapes from the header
# needs the dtype to know what they count, and a streaming reader cannot take such a tensor in pieces through the library.
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
from safetensors import safe_open
from safetensors.torch import save_file

path = sys.argv[1]
packed = torch.arange(24, dtype=torch.uint8).reshape(3, 8).view(torch.float4_e2m1fn_x2)
save_file({"w": packed}, path)
with safe_open(path, "pt") as file:
    part = file.get_slice("w")
    stated, whole = part.get_shape(), file.get_tensor("w")
    try:
        rows = part[1:2].shape
    except RuntimeError as error:
        rows = f"RuntimeError: {error}"
    wide = file.get_slice("w").get_dtype()
print("torch:", tuple(packed.shape), "| header:", wide, stated, "| get_tensor:", tuple(whole.shape))
print("get_slice('w')[1:2]:", rows)
same = torch.equal(whole.view(torch.uint8), packed.view(torch.uint8))
sys.exit(not (stated == [3, 16] and tuple(whole.shape) == (3, 8) and same and str(rows).startswith("RuntimeError")))
PY
"$here/env/bin/python" "$here/try.py" "$here/x.safetensors"
