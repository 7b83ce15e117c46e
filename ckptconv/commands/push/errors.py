"""Explains the errors of a push: one sentence each, with the command to type next."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, replace

from ckptconv.errors import CkptconvError
from ckptconv.hub import errors
from ckptconv.hub.errors import Saying, Sayings


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
_NO_ADDRESS = Saying("{endpoint} is not an address", "HF_ENDPOINT=https://huggingface.co {command}")
_BROKEN = Saying("the connection to {endpoint} broke", _AGAIN)
_SERVER = Saying("the Hub failed with status {status}", _AGAIN)
_README = Saying("the front matter of README.md is not valid", "correct it, then: {command}", quote=True)
_OTHER = Saying("the upload failed", _AGAIN, quote=True)
_BY_STATUS = {
    400: Saying("the Hub refused the request", "correct what it names, then: {command}", quote=True),
    401: Saying("the Hub does not accept this token", _NO_TOKEN),
    402: Saying("the Hub asks for a paid plan or more storage", _NO_SPACE, quote=True),
    403: Saying("the token of {user} has no write access to {repo}", _NO_RIGHT, quote=True),
    404: Saying("the Hub has no {repo} that this token can see", "check the name, then: {command}"),
    409: Saying("{repo} was being changed at the same time", _AGAIN, quote=True),
    412: Saying("{repo} was changed during the upload", _AGAIN),
    413: Saying("a file is larger than the Hub takes", _TOO_LARGE),
    429: Saying("the Hub's rate limit was reached", "wait a few minutes, then: {command}"),
}
_BY_NAME = {
    "OfflineModeIsEnabled": Saying(
        "HF_HUB_OFFLINE is set, so nothing is uploaded", "HF_HUB_OFFLINE=0 {command}"
    ),
    "LocalTokenNotFoundError": Saying("no token for {endpoint}", "hf auth login"),
    "HFValidationError": Saying(
        "{repo!r} is not a valid repository name", "as in: ckptconv push {folder} ORG/NAME", True
    ),
    "RevisionNotFoundError": Saying("{repo} has no {revision}", "look at {endpoint}/{repo}, then: {command}"),
    "ConnectError": Saying(
        "cannot reach {endpoint}", "check network and HF_ENDPOINT, then: {command}", quote=True
    ),
    "ProxyError": Saying("the proxy refuses", "check HTTPS_PROXY, then: {command}", quote=True),
    "UnsupportedProtocol": _NO_ADDRESS,
    "InvalidURL": _NO_ADDRESS,
    "TimeoutException": Saying("{endpoint} does not answer", _AGAIN),
    "TransportError": _BROKEN,
    "ConnectionError": _BROKEN,
    "JSONDecodeError": Saying("{endpoint} does not respond like a Hub", "check HF_ENDPOINT, then: {command}"),
    "XetAuthenticationError": Saying("the Hub's storage does not accept this token", _AGAIN, quote=True),
    "OSError": Saying("a file could not be read or sent", _AGAIN, quote=True),
}

_PUSH = Sayings(_BY_NAME, _BY_STATUS, server=_SERVER, other=_OTHER, readme=_README)


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
