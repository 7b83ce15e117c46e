#!/usr/bin/env bash
# torch==2.13.0: a file saved under torch.serialization.skip_data looks checksummed, but its weights are not.
#
# skip_data writes the zip without the storages' bytes, so that they can be filled in later by fast writes. The records'
# CRC-32 in the zip directory is then 0 for the storages, while data.pkl and the other small entries have real ones.
# Python's zipfile calls the filled file broken, torch.load reads it without a complaint, and it reads a flipped bit as well:
# a tool that counts "entries whose CRC holds" counts only entries that hold no weights.
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

path = sys.argv[1]
weight = torch.arange(1.0, 9.0)
with torch.serialization.skip_data():
    torch.save({"weight": weight}, path)
entries = {info.filename.split("/", 1)[1]: info for info in zipfile.ZipFile(path).infolist()}
data = entries["data/0"]
with open(path, "r+b") as file:  # fill in the storage, as the writer of such a file does
    file.seek(data.header_offset + 26)
    names = int.from_bytes(file.read(2), "little") + int.from_bytes(file.read(2), "little")
    start = data.header_offset + 30 + names
    file.seek(start)
    file.write(weight.numpy().tobytes())
print("CRC of data.pkl:", f"{entries['data.pkl'].CRC:08x}", "| CRC of the weights:", f"{data.CRC:08x}")
right = torch.equal(torch.load(path)["weight"], weight)
with open(path, "r+b") as file:
    file.seek(start + 3)
    file.write(b"\xff")
flipped = not torch.equal(torch.load(path)["weight"], weight)
print("torch.load reads the filled file:", right, "| and the damaged one without an error:", flipped)
sys.exit(not (data.CRC == 0 and entries["data.pkl"].CRC != 0 and right and flipped))
PY
"$here/env/bin/python" "$here/try.py" "$here/x.pt"
