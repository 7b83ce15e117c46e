#!/usr/bin/env bash
# ml_dtypes==0.6.0, numpy==2.4.6: the mean of ten thousand ones in bfloat16 is 0.0256.
#
# numpy sums its own float16 pairwise and takes means of it in float32; torch accumulates bfloat16 in float32. A bfloat16
# array of ml_dtypes is summed one by one in bfloat16: from 256 on, adding 1 changes nothing. mean() divides that 256 by the
# number of elements. dtype=numpy.float32 helps. Statistics of weights (a mean, a standard deviation, a norm for a scale)
# that were tried on float16 are silently wrong on bfloat16 as soon as an array is large.
#
# Exits 0 while it is so, 1 once it is not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import ml_dtypes
import numpy

for dtype in (numpy.float16, ml_dtypes.bfloat16):
    ones = numpy.ones(10_000, dtype)
    in_float32 = ones.mean(dtype=numpy.float32)
    print(f"{ones.dtype}: sum {float(ones.sum()):g}, mean {float(ones.mean()):.3g}, in float32 {float(in_float32):g}")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 2> /dev/null
"$here/env/bin/python" "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
float16: sum 10000, mean 1, in float32 1
bfloat16: sum 256, mean 0.0256, in float32 1
SEEN
