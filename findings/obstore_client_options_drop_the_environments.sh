#!/usr/bin/env bash
# obstore==0.12.1: one client option given in code drops those of the environment.
#
# S3Store reads AWS_ALLOW_HTTP (and other options of the HTTP client) from the environment. As soon as `client_options` is passed,
# even with an unrelated timeout, the environment's client options no longer count: AWS_ALLOW_HTTP=true with an endpoint of
# http:// ends in "builder error" (BadScheme) before anything is sent. Endpoint, region and keys of the environment
# still count, so that the store looks configured. Code that wants one option has to pass all of them, or none.
#
# Exits 0 while obstore behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check obstore==0.12.1 typing_extensions 2> /dev/null
cat > "$here/ask.py" <<'PY'
import http.server, os, threading

class Empty(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'<ListBucketResult><IsTruncated>false</IsTruncated></ListBucketResult>'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Empty)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ.update(AWS_ENDPOINT_URL=f"http://127.0.0.1:{server.server_address[1]}", AWS_ALLOW_HTTP="true",
                  AWS_REGION="us-east-1", AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="secret")
from obstore.store import S3Store

def listed(**options):
    try:
        return f"{len(S3Store('bucket', **options).list().collect())} objects"
    except Exception as error:
        return "BadScheme" if "BadScheme" in str(error) else str(error)[:200]

found = {
    "no client options": listed(),
    "a timeout": listed(client_options={"timeout": "30s"}),
    "a timeout and allow_http": listed(client_options={"timeout": "30s", "allow_http": True}),
}
for what, result in found.items():
    print(f"AWS_ALLOW_HTTP=true, {what}: {result}")
raise SystemExit(list(found.values()) != ["0 objects", "BadScheme", "0 objects"])
PY
"$here/env/bin/python" "$here/ask.py"
