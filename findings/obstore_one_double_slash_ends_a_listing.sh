#!/usr/bin/env bash
# obstore==0.12.1 (object_store 0.14.2), moto==5.2.5 as the S3 server: one key with an empty part hides all other keys.
#
# `run//b` is a valid key of S3; scripts write it when they join "run/" and "/b". A listing of `run` by obstore ends with
# InvalidPathError as soon as such a key is in it: no page is returned, those before it neither, with `list` as with
# `list_with_delimiter`. The same holds for a part "." and for a control character. `list` with an offset behind the key
# works, but nothing says where that is but the error's text. The object itself cannot be named, so that it cannot be read or
# deleted. boto3 lists, reads and deletes it. So a program that worked on a bucket stops when somebody adds one object.
#
# Exits 0 while obstore behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check \
  obstore==0.12.1 typing_extensions 'moto[s3,server]==5.2.5' boto3 2> /dev/null
cat > "$here/ask.py" <<'PY'
import boto3
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
server.start()
url = "http://127.0.0.1:%d" % server.get_host_and_port()[1]
client = boto3.client("s3", endpoint_url=url, region_name="us-east-1", aws_access_key_id="k", aws_secret_access_key="s")
client.create_bucket(Bucket="bucket")
for key in ("run/a", "run//b", "run/c"):
    client.put_object(Bucket="bucket", Key=key, Body=b"x")
store = S3Store(
    "bucket", endpoint=url, region="us-east-1", access_key_id="k", secret_access_key="s", client_options={"allow_http": True}
)


def tried(step):
    try:
        return str(step())
    except Exception as error:
        return type(error).__name__


found = {
    "boto3 lists": str([item["Key"] for item in client.list_objects_v2(Bucket="bucket", Prefix="run/")["Contents"]]),
    "obstore.list": tried(lambda: [item["path"] for item in store.list("run").collect()]),
    "obstore.list_with_delimiter": tried(lambda: len(store.list_with_delimiter("run")["objects"])),
    "obstore.list, from run/a on": tried(lambda: [item["path"] for item in store.list("run", offset="run/a").collect()]),
    "obstore.get of run//b": tried(lambda: store.get("run//b")),
}
client.delete_object(Bucket="bucket", Key="run//b")
found["obstore.list without it"] = tried(lambda: [item["path"] for item in store.list("run").collect()])
for what, result in found.items():
    print(f"{what}: {result}")
server.stop()
wanted = ["['run//b', 'run/a', 'run/c']", "InvalidPathError", "InvalidPathError", "['run/c']", "ValueError", "['run/a', 'run/c']"]
raise SystemExit(list(found.values()) != wanted)
PY
"$here/env/bin/python" "$here/ask.py" 2> /dev/null
