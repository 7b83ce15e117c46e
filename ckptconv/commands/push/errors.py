"""Explains the errors of a push: one sentence each, with the command to type next."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace

from ckptconv.errors import CkptconvError
from ckptconv.hub import errors
from ckptconv.hub.errors import Explanation, Explanations


@dataclass(frozen=True)
class Job:
    """The request, as far as messages need it. The token is here only to mask it in messages."""

    folder: str
    repo_id: str
    endpoint: str
    token: str | None = None
    user: str | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False
    message: str | None = None
    description: str | None = None
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()

    @property
    def pull_request(self) -> int | None:
        """The number of the pull request that the push resumes; None if there is none."""
        match = re.fullmatch(r"refs/pr/(\d+)", self.revision or "")
        return int(match[1]) if match else None

    @property
    def command(self) -> str:
        """The command line that repeats this push."""
        words = ["ckptconv", "push", self.folder, self.repo_id]
        if self.private is not None:
            words.append("--private" if self.private else "--no-private")
        if self.revision:
            words += ["--revision", self.revision]
        if self.create_pr:
            words.append("--create-pr")
        if self.message:
            words += ["--commit-message", self.message]
        if self.description:
            words += ["--commit-description", self.description]
        for pattern in self.include:
            words += ["--include", pattern]
        for pattern in self.exclude:
            words += ["--exclude", pattern]
        return shlex.join(words)


_AGAIN = "run it again to resume: {command}"
_NO_TOKEN = "create a token at {endpoint}/settings/tokens, then run: hf auth login --force"
_NO_RIGHT = "use a token with write access or another repo name, then: {command}"
_NO_SPACE = "see {endpoint}/settings/billing, then: {command}"
_TOO_LARGE = "make smaller shards, then push: ckptconv merge DIR {folder} --overwrite --max-shard-size 5GB"
_NO_ADDRESS = Explanation("{endpoint} is not an address", "HF_ENDPOINT=https://huggingface.co {command}")
_BROKEN = Explanation("the connection to {endpoint} broke", _AGAIN)
_SERVER = Explanation("the Hub failed with status {status}", _AGAIN)
_README = Explanation("the front matter of README.md is not valid", "correct it, then: {command}", quote=True)
_OTHER = Explanation("the upload failed", _AGAIN, quote=True)
_BY_STATUS = {
    400: Explanation("the Hub refused the request", "correct what it names, then: {command}", quote=True),
    401: Explanation("the Hub does not accept this token", _NO_TOKEN),
    402: Explanation("the Hub asks for a paid plan or more storage", _NO_SPACE, quote=True),
    403: Explanation("the token of {user} has no write access to {repo}", _NO_RIGHT, quote=True),
    404: Explanation("the Hub has no {repo} that this token can see", "check the name, then: {command}"),
    409: Explanation("{repo} was being changed at the same time", _AGAIN, quote=True),
    412: Explanation("{repo} was changed during the upload", _AGAIN),
    413: Explanation("a file is larger than the Hub takes", _TOO_LARGE),
    429: Explanation("the Hub's rate limit was reached", "wait a few minutes, then: {command}"),
}
_BY_NAME = {
    "OfflineModeIsEnabled": Explanation(
        "HF_HUB_OFFLINE is set, so nothing is uploaded", "HF_HUB_OFFLINE=0 {command}"
    ),
    "LocalTokenNotFoundError": Explanation("no token for {endpoint}", "hf auth login"),
    "HFValidationError": Explanation(
        "{repo!r} is not a valid repository name", "as in: ckptconv push {folder} ORG/NAME", True
    ),
    "RevisionNotFoundError": Explanation(
        "{repo} has no {revision}", "look at {endpoint}/{repo}, then: {command}"
    ),
    "ConnectError": Explanation(
        "cannot reach {endpoint}", "check network and HF_ENDPOINT, then: {command}", quote=True
    ),
    "ProxyError": Explanation("the proxy refuses", "check HTTPS_PROXY, then: {command}", quote=True),
    "UnsupportedProtocol": _NO_ADDRESS,
    "InvalidURL": _NO_ADDRESS,
    "TimeoutException": Explanation("{endpoint} does not answer", _AGAIN),
    "TransportError": _BROKEN,
    "ConnectionError": _BROKEN,
    "JSONDecodeError": Explanation(
        "{endpoint} does not respond like a Hub", "check HF_ENDPOINT, then: {command}"
    ),
    "XetAuthenticationError": Explanation("the Hub's storage does not accept this token", _AGAIN, quote=True),
    "OSError": Explanation("a file could not be read or sent", _AGAIN, quote=True),
}

_PUSH = Explanations(_BY_NAME, _BY_STATUS, server=_SERVER, other=_OTHER, readme=_README)


def explain(error: BaseException, job: Job, left: str | None = None) -> CkptconvError:
    """Turn an error of huggingface_hub into a CkptconvError.

    Args:
        error: what huggingface_hub raised.
        job: the push.
        left: the ref of a pull request that is incomplete, or None.
    """
    if left is not None:
        job = replace(job, revision=left, create_pr=False)
    words = {
        "repo": job.repo_id,
        "user": job.user or "this account",
        "endpoint": job.endpoint,
        "revision": job.revision or "main",
        "folder": shlex.quote(job.folder),
        "command": job.command,
    }
    hint = "the pull request is open; finish it: {command}" if left is not None else None
    return errors.explain(error, _PUSH, words, token=job.token, hint=hint)
