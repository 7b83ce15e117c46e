#!/usr/bin/env bash
# compressed-tensors==0.20.1: symmetric int4 cannot hold the largest weight of a group, even where all weights are on a grid.
#
# GGUF's Q8_0 takes the largest magnitude over 127 as the scale, so that the weight which decides the scale is exact. Here the
# scale is the magnitude over 7.5, half of the range (as torch's observers have it), and not over 7: a positive largest weight
# would be 7.5 steps, is clipped to 7 and comes back 6.7 % too small; a negative one becomes 8 steps and is 6.7 % too large.
# Weights that are on a grid of 4 bits already (integers from -7 to 7) are not kept: all of them but zero change, and a second
# pass changes them again.
#
# Exits 0 while compressed-tensors behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import fake_quantize
from compressed_tensors.quantization.utils import calculate_qparams

args = QuantizationArgs(num_bits=4, type="int", symmetric=True, strategy="group", group_size=8)


def there_and_back(weight):
    groups = weight.reshape(-1, 8)
    scale, zero = calculate_qparams(groups.amin(1, keepdim=True), groups.amax(1, keepdim=True), args)
    return fake_quantize(weight, scale, zero, args), scale


for name, row in {"positive": [7, -3, 2, 5, -6, 1, 0, 4], "negative": [-7, -3, 2, 5, -6, 1, 0, 4]}.items():
    weight = torch.tensor([row], dtype=torch.float32)
    once, scale = there_and_back(weight)
    twice, _ = there_and_back(once)
    print(f"{name}: {row[0]} becomes {once[0, 0]:.3f} with scale {scale.item():.4f}; then {twice[0, 0]:.3f}")
    print(f"  kept exactly: {int((once == weight).sum())} of 8; with scale 1: {int((weight.round() == weight).sum())} of 8")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check compressed-tensors==0.20.1 transformers==5.24.0 2> /dev/null
"$here/env/bin/python" "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
positive: 7 becomes 6.533 with scale 0.9333; then 6.098
  kept exactly: 1 of 8; with scale 1: 8 of 8
negative: -7 becomes -7.467 with scale 0.9333; then -7.964
  kept exactly: 1 of 8; with scale 1: 8 of 8
SEEN
