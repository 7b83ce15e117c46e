#!/usr/bin/env bash
# safetensors==0.8.0: safetensors.numpy.save_file writes a transposed array with its shape and the elements of the original.
#
# Up to 0.7.0 the elements were copied in row-major order, whatever the array's own order. 0.8.0 takes them from memory as
# they lie there and never looks at the strides, so weight.T and a Fortran-ordered array come back scrambled. The array is
# contiguous and dense, as the documentation asks, only not row-major. safetensors.torch refuses the same tensor with an
# error; here nothing is raised.
#
# Exits 0 while safetensors behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import sys

import numpy
import safetensors
from safetensors.numpy import load_file, save_file

weight = numpy.arange(6, dtype=numpy.float32).reshape(2, 3)
arrays = {"row-major": weight, "transposed": weight.T, "Fortran order": numpy.asfortranarray(weight)}
save_file(arrays, sys.argv[1] + "/out.safetensors")
for name, loaded in load_file(sys.argv[1] + "/out.safetensors").items():
    verdict = "right" if numpy.array_equal(loaded, arrays[name]) else f"wrong, {loaded.tolist()}"
    print(f"{safetensors.__version__} {name}: {verdict}")
PY
python3 -m venv "$here/env"
for version in 0.7.0 0.8.0; do
    "$here/env/bin/pip" install --quiet --disable-pip-version-check safetensors==$version numpy==2.4.6 2> /dev/null
    "$here/env/bin/python" "$here/try.py" "$here"
done | sort | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
0.7.0 Fortran order: right
0.7.0 row-major: right
0.7.0 transposed: right
0.8.0 Fortran order: wrong, [[0.0, 3.0, 1.0], [4.0, 2.0, 5.0]]
0.8.0 row-major: right
0.8.0 transposed: wrong, [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
SEEN
