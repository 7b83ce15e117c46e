#!/usr/bin/env bash
# ml_dtypes==0.6.0, numpy==2.4.6: numpy.sort of a bfloat16 array with a NaN in it gives back an array that is not sorted.
#
# numpy sorts the NaN of its own floats to the end, so that sort, argsort, searchsorted and what is built on them work on the
# numbers. Of ml_dtypes' types it knows no such rule: each comparison with NaN is false, the NaN stays somewhere in the middle,
# and the numbers on its two sides are sorted apart. A threshold that is taken from the end or the k-th place of such an array
# (pruning, clipping, the largest weight) is another number. float16 and float32 of the same values are sorted. No warning.
#
# Exits 0 while it is so, 1 once it is not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import ml_dtypes
import numpy

for dtype in (numpy.float32, numpy.float16, ml_dtypes.bfloat16):
    values = numpy.array([3, 9, numpy.nan, 2, 1], dtype)
    print(f"{values.dtype}: {[float(each) for each in numpy.sort(values)]}")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 ml_dtypes==0.6.0 2> /dev/null
"$here/env/bin/python" "$here/try.py" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
float32: [1.0, 2.0, 3.0, 9.0, nan]
float16: [1.0, 2.0, 3.0, 9.0, nan]
bfloat16: [3.0, 9.0, nan, 1.0, 2.0]
SEEN
