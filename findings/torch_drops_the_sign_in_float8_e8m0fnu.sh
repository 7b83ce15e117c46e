#!/usr/bin/env bash
# torch==2.13.0 (with ml_dtypes==0.6.0): a cast of a negative number to float8_e8m0fnu gives its magnitude, of zero 2^-127.
#
# float8_e8m0fnu, the dtype of the scales of MX formats, has powers of two and NaN, but neither a sign nor a zero. ml_dtypes
# makes NaN of what it cannot hold. torch takes the bits of the exponent: -3 becomes 4, 0 becomes 5.9e-39, and both look
# like scales. Positive numbers are rounded alike in both.
#
# Exits 0 while torch behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import ml_dtypes
import numpy
import torch

for value in (3.0, 1.4, -3.0, -1.4, 0.0, float("nan")):
    array = numpy.array([value], dtype=numpy.float32)
    with numpy.errstate(all="ignore"):
        other = array.astype(ml_dtypes.float8_e8m0fnu).astype(numpy.float32)[0]
    own = torch.tensor(array).to(torch.float8_e8m0fnu).float().item()
    print(f"{value}: torch {own:.3g}, ml_dtypes {other:.3g}")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 2> /dev/null
"$here/env/bin/python" "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
3.0: torch 4, ml_dtypes 4
1.4: torch 1, ml_dtypes 1
-3.0: torch 4, ml_dtypes nan
-1.4: torch 1, ml_dtypes nan
0.0: torch 5.88e-39, ml_dtypes nan
nan: torch nan, ml_dtypes nan
SEEN
