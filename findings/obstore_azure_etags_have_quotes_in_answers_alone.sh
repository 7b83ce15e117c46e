#!/usr/bin/env bash
# obstore==0.12.1, azurite 3.35.0 (Microsoft's emulator of Azure Blob Storage): one blob's ETag comes in two spellings.
#
# A listing states the ETag as it is in Azure's XML, 0x1C…; `head` and `get` state the header's, "0x1C…" with its quotes. On S3
# both have the quotes. A program that keeps a listing, and later asks whether a blob is still the listed one by comparing the
# two e_tag values, takes every blob in Azure for a changed one, while the same program works on S3. `if_match` accepts both
# spellings, so a conditional request does not show it.
#
# Exits 0 while obstore behaves so, 1 once it does not. It needs node and npm.
set -euo pipefail
here=$(mktemp -d); server=
trap '[ -z "$server" ] || kill "$server"; rm -rf "$here"' EXIT
cd "$here"
npm install --silent --no-audit --no-fund --ignore-scripts azurite@3.35.0 > npm.log 2>&1
python3 -m venv env
env/bin/pip install --quiet --disable-pip-version-check obstore==0.12.1 typing_extensions azure-storage-blob==12.31.1 2> /dev/null
port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
node_modules/.bin/azurite-blob --blobHost 127.0.0.1 --blobPort "$port" --location data --silent --skipApiVersionCheck \
  --disableTelemetry > az.log 2>&1 & server=$!
cat > ask.py <<'PY'
import sys, time
from azure.storage.blob import BlobServiceClient
from obstore.store import AzureStore

account = "devstoreaccount1"  # of every installation of the emulator, like its key
key = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
url = f"http://127.0.0.1:{sys.argv[1]}/{account}"
for attempt in range(100):
    try:
        BlobServiceClient(url, credential=key, retry_total=0).create_container("box")
        break
    except Exception:
        if attempt == 99:
            raise
        time.sleep(0.2)
store = AzureStore("box", account_name=account, account_key=key, endpoint=url, client_options={"allow_http": True})
store.put("a.bin", b"one", use_multipart=False)
(listed,) = store.list().collect()
head = store.head("a.bin")
got = store.get("a.bin", options={"if_match": listed["e_tag"]}).meta
print("list:", listed["e_tag"])
print("head:", head["e_tag"])
print("get: ", got["e_tag"])
raise SystemExit(not (head["e_tag"] == got["e_tag"] == f'"{listed["e_tag"]}"'))
PY
env/bin/python ask.py "$port"
