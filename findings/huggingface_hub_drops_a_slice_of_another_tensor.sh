#!/usr/bin/env bash
# huggingface_hub==2.4.0, safetensors==0.8.0: save_torch_state_dict leaves out a tensor that is a slice of another one.
#
# Tensors that share memory are written once, as ties are. A head over the first rows of the embedding (head = table[:5])
# shares memory too, but is another tensor: it has 5 rows and not 8. The file has the table alone, and its metadata calls
# head.weight the same as table.weight, which is untrue. The entry is gone from the caller's dict as well. Nothing is raised,
# warned or logged. Two slices that overlap, with no tensor that covers both, are refused with an error, and so is this dict
# by safetensors' own save_file.
#
# Exits 0 while huggingface_hub behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
cat > "$here/try.py" <<'PY'
import logging
import sys
import warnings

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import save_file

logging.basicConfig(level=logging.WARNING, stream=sys.stdout, format="logged: %(message)s")
warnings.simplefilter("error")
table = torch.arange(32.0).reshape(8, 4)
state = {"table.weight": table, "head.weight": table[:5]}
given = dict(state)
save_torch_state_dict(given, sys.argv[1])
with safe_open(sys.argv[1] + "/model.safetensors", "pt") as file:
    print("saved:", {name: file.get_slice(name).get_shape() for name in file.keys()})
    print("head.weight is called the same as:", file.metadata()["head.weight"])
print("the caller's dict has now:", *given)
for what, save in {
    "this dict, by save_file": lambda: save_file(state, sys.argv[1] + "/x"),
    "overlapping slices": lambda: save_torch_state_dict({"a": table[:5], "b": table[3:]}, sys.argv[1]),
}.items():
    try:
        save()
        print(what + ": saved")
    except RuntimeError:
        print(what + ": refused")
PY
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check huggingface_hub==2.4.0 safetensors==0.8.0 numpy==2.4.6 2> /dev/null
"$here/env/bin/python" "$here/try.py" "$here" 2> /dev/null | tee "$here/seen"
diff "$here/seen" - <<'SEEN'
saved: {'table.weight': [8, 4]}
head.weight is called the same as: table.weight
the caller's dict has now: table.weight
this dict, by save_file: refused
overlapping slices: refused
SEEN
