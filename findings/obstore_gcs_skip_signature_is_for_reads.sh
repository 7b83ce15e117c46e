#!/usr/bin/env bash
# obstore==0.12.1: GCSStore's `skip_signature` (GOOGLE_SKIP_SIGNATURE=true) is for reads. A write still fetches credentials.
#
# The setting is documented as "will not fetch credentials and will not sign requests". `list`, `head` and `get` send no
# Authorization header then, and ask nobody for a token. `put` of the same store asks the metadata server of the machine for one,
# and signs with it: outside of Google's machines it fails with "Error performing token request", although
# the server (an emulator, a proxy that signs) wants no token; on one of them, the instance's token is sent to that server.
#
# Exits 0 while obstore behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1 typing_extensions 2> /dev/null
cat > "$here/ask.py" <<'PY'
import http.server, json, os, threading

tokens, signed = [], []

class Google(http.server.BaseHTTPRequestHandler):
    """The store, and the metadata server of the machine."""

    def do_GET(self):
        body, headers = b"hello", {"Content-Type": "text/plain"}
        if "computeMetadata" in self.path:
            tokens.append(self.path)
            body = json.dumps({"access_token": "of-this-machine", "expires_in": 3600, "token_type": "Bearer"}).encode()
        elif "list-type" in self.path:
            body = b'<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
        if "Authorization" in self.headers:
            signed.append(f"{self.command} {self.headers['Authorization']}")
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(200)
        for name, value in {"ETag": '"1"', "x-goog-generation": "1", "Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT",
                            "Content-Length": str(len(body)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_PUT = do_GET

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Google)
threading.Thread(target=server.serve_forever, daemon=True).start()
place = f"127.0.0.1:{server.server_address[1]}"
for name in [name for name in os.environ if name.startswith("GOOGLE_")]:
    del os.environ[name]
os.environ.update(GOOGLE_BASE_URL=f"http://{place}", GOOGLE_ALLOW_HTTP="true", GOOGLE_SKIP_SIGNATURE="true",
                  GCE_METADATA_HOST=place, GCE_METADATA_ROOT=place, GCE_METADATA_IP=place, HOME="/nonexistent")
from obstore.store import GCSStore

store = GCSStore("bucket")
seen = {}
for word, step in {"list": lambda: store.list().collect(), "head": lambda: store.head("a"), "get": lambda: store.get("a").bytes(),
                   "put": lambda: store.put("a", b"hello", use_multipart=False)}.items():
    tokens.clear(), signed.clear()
    try:
        step()
        result = "done"
    except Exception as error:
        result = str(error).splitlines()[0][:90]
    seen[word] = bool(tokens)
    print(f"{word}: {result}; asked for a token: {bool(tokens)}; sent: {signed or 'no Authorization'}")
raise SystemExit(seen != {"list": False, "head": False, "get": False, "put": True})
PY
timeout 200 "$here/env/bin/python" "$here/ask.py"
