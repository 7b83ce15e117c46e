#!/usr/bin/env bash
# torch==2.13.0 (with ml_dtypes==0.6.0): a cast to float8_e4m3fn turns infinity into 448, a cast to the other float8 does not.
#
# float8_e4m3fn has no infinity. ml_dtypes, and torch itself for float8_e4m3fnuz, make NaN of what is too large; e5m2, which
# has an infinity, overflows to it. For e4m3fn torch saturates: what is too large and infinity itself become the largest
# number. A weight that overflowed is then a finite number like any other, and no look for NaN and Inf finds it.
#
# Exits 0 while torch behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import ml_dtypes
import numpy
import torch

values = numpy.array([1e6, -1e6, numpy.inf, -numpy.inf, numpy.nan], dtype=numpy.float32)
for name in ("float8_e4m3fn", "float8_e4m3fnuz", "float8_e5m2"):
    with numpy.errstate(all="ignore"):
        other = values.astype(getattr(ml_dtypes, name)).astype(numpy.float32)
    own = torch.tensor(values).to(getattr(torch, name)).float()
    print(name, "torch", own.tolist(), "ml_dtypes", other.tolist())
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 2> /dev/null
"$here/env/bin/python" "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
float8_e4m3fn torch [448.0, -448.0, 448.0, -448.0, nan] ml_dtypes [nan, nan, nan, nan, nan]
float8_e4m3fnuz torch [nan, nan, nan, nan, nan] ml_dtypes [nan, nan, nan, nan, nan]
float8_e5m2 torch [inf, -inf, inf, -inf, nan] ml_dtypes [inf, -inf, inf, -inf, nan]
SEEN
