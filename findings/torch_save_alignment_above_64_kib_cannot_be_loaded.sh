#!/usr/bin/env bash
# torch==2.13.0: torch.save accepts any `storage_alignment`, but above 64 KiB the file that it writes cannot be loaded.
#
# torch.utils.serialization.config.save.storage_alignment (the alignment of storages in the file, in bytes) is
# reached by padding in each entry's local zip header, whose length field has 16 bits. A padding of 64 KiB and more is
# written in full while its length is cut to 16 bits. So an alignment of 64 KiB works, and one of 128 KiB, or of the 2 MiB
# of a huge page, gives a checkpoint of which torch.save does not complain and which torch.load, with or without mmap, and
# Python's zipfile refuse. The tensors are in the file, whole and at the aligned places; only the headers are wrong.
#
# Seen: 65536 saved, loaded: True; 131072 saved, loaded: "Couldn't parse the version ZZ as Long Long"; zipfile names
# data.pkl as the first bad entry; and the bytes of the tensor are in the file at a multiple of 131072.
#
# Exits 0 while torch behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 2> /dev/null
"$here/env/bin/pip" install --quiet --disable-pip-version-check numpy==2.4.6 2> /dev/null
cat > "$here/try.py" <<'PY'
import sys, zipfile
import torch
from torch.utils.serialization import config

path = sys.argv[1]
weight = torch.arange(1.0, 3001.0)


def loaded(alignment: int, mmap: bool) -> str:
    with config.patch("save.storage_alignment", alignment):
        torch.save({"weight": weight}, path)
    try:
        return str(torch.equal(torch.load(path, mmap=mmap)["weight"], weight))
    except RuntimeError as error:
        return str(error).splitlines()[0]


for alignment in (64, 65536, 131072, 1 << 21):
    print(alignment, "saved without a complaint | loaded:", loaded(alignment, False), "| with mmap:", loaded(alignment, True))
works, breaks = loaded(65536, False) == "True", loaded(131072, False) != "True" != loaded(131072, True)
bad = zipfile.ZipFile(path).testzip()
place = open(path, "rb").read().index(weight.numpy().tobytes())
print("zipfile's first bad entry:", bad, "| the weight is in the file at byte", place, "=", place // 131072, "x 131072")
sys.exit(not (works and breaks and bad and place % 131072 == 0))
PY
"$here/env/bin/python" "$here/try.py" "$here/x.pt"
