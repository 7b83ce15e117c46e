#!/usr/bin/env bash
# boto3==1.44.8, botocore==1.44.8: AWS_DEFAULT_PROFILE wins over AWS_PROFILE, and keys of the environment win over both.
#
# boto3's guide names AWS_PROFILE as the variable for the profile. botocore looks for AWS_DEFAULT_PROFILE first, so that the
# "default" is not what counts where nothing else is said, but what counts most. AWS_ACCESS_KEY_ID then wins over the profile
# that either names, for the keys alone: the region still comes from the profile. And a profile that does not exist is an
# error even where its keys are not needed. A program that reads these files itself, to act as boto3 does, has to know it.
#
# Exits 0 while boto3 behaves so, 1 once it does not.
set -euo pipefail
here=$(mktemp -d); trap 'rm -rf "$here"' EXIT
python3 -m venv "$here/env"
"$here/env/bin/pip" install --quiet --disable-pip-version-check boto3==1.44.8 botocore==1.44.8 2> /dev/null
cat > "$here/credentials" <<'INI'
[one]
aws_access_key_id = key of one
aws_secret_access_key = s
region = region-of-one
[two]
aws_access_key_id = key of two
aws_secret_access_key = s
region = region-of-two
INI
cat > "$here/ask.py" <<'PY'
import os, sys

import boto3

for name in [name for name in os.environ if name.startswith("AWS_")]:
    del os.environ[name]
os.environ.update(AWS_SHARED_CREDENTIALS_FILE=sys.argv[1], AWS_CONFIG_FILE="/dev/null", AWS_EC2_METADATA_DISABLED="true")


def found(**variables):
    os.environ.update(variables)
    try:
        session = boto3.Session()
        return f"{session.get_credentials().access_key}, {session.region_name}"
    except Exception as error:
        return type(error).__name__
    finally:
        for name in variables:
            del os.environ[name]


both = {"AWS_PROFILE": "one", "AWS_DEFAULT_PROFILE": "two"}
keys = {"AWS_ACCESS_KEY_ID": "key of the environment", "AWS_SECRET_ACCESS_KEY": "s"}
seen = {
    "AWS_PROFILE=one": found(AWS_PROFILE="one"),
    "AWS_PROFILE=one AWS_DEFAULT_PROFILE=two": found(**both),
    "AWS_PROFILE=one and keys": found(AWS_PROFILE="one", **keys),
    "AWS_PROFILE=none and keys": found(AWS_PROFILE="none", **keys),
}
for what, result in seen.items():
    print(f"{what}: {result}")
wanted = [
    "key of one, region-of-one", "key of two, region-of-two", "key of the environment, region-of-one", "ProfileNotFound",
]
raise SystemExit(list(seen.values()) != wanted)
PY
"$here/env/bin/python" "$here/ask.py" "$here/credentials"
