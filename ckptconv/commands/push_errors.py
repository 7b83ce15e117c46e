"""What went wrong with the Hub: one sentence each, with the command to type next. A token is never repeated.

huggingface_hub changed its HTTP library between major versions: errors are known by class name, not by class.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace

from ckptconv.errors import CkptconvError

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")


@dataclass(frozen=True)
class Job:
    """What was asked, as far as a message needs it; token only to keep it out of messages."""

    folder: str
    repo_id: str
    endpoint: str
    token: str | None = None
    user: str | None = None
    private: bool | None = None
    revision: str | None = None
    create_pr: bool = False

    @property
    def command(self) -> str:
        """The command line that does this push again."""
        words = ["ckptconv", "push", self.folder, self.repo_id]
        if self.private is not None:
            words.append("--private" if self.private else "--no-private")
        if self.revision:
            words += ["--revision", self.revision]
        if self.create_pr:
            words.append("--create-pr")
        return shlex.join(words)


@dataclass(frozen=True)
class Saying:
    """One row of the table: a sentence and a hint, with {repo}, {user}, {command} and so on to fill in.

    quote: repeat what the server said, because the sentence alone does not tell the user enough.
    """

    what: str
    hint: str
    quote: bool = False


_AGAIN = "run it again, it goes on where it stopped: {command}"
_NO_TOKEN = "make one at {endpoint}/settings/tokens, then: hf auth login --force"
_NO_RIGHT = "use a token that may, or choose a name of your own, then: {command}"
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
    403: Saying("the token of {user} may not write to {repo}", _NO_RIGHT, quote=True),
    404: Saying("the Hub has no {repo} that this token can see", "check the name, then: {command}"),
    409: Saying("{repo} was being changed at the same time", _AGAIN, quote=True),
    412: Saying("{repo} was changed during the upload", _AGAIN),
    413: Saying("a file is larger than the Hub takes", _TOO_LARGE),
    429: Saying("the Hub asks for a pause: too many requests", "wait some minutes, then: {command}"),
}
_BY_NAME = {
    "OfflineModeIsEnabled": Saying("HF_HUB_OFFLINE is set, so nothing is sent", "HF_HUB_OFFLINE=0 {command}"),
    "LocalTokenNotFoundError": Saying("there is no token for {endpoint}", "hf auth login"),
    "HFValidationError": Saying(
        "{repo!r} cannot name a repository", "as in: ckptconv push {folder} ORG/NAME", True
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
    "JSONDecodeError": Saying(
        "{endpoint} does not answer as a Hub does", "check HF_ENDPOINT, then: {command}"
    ),
    "XetAuthenticationError": Saying("the Hub's storage does not accept this token", _AGAIN, quote=True),
    "OSError": Saying("a file could not be read or sent", _AGAIN, quote=True),
}


def scrub(text: str, token: str | None) -> str:
    """The text without the token and without anything that looks like one."""
    if token:
        text = text.replace(token, "hf_***")
    return _TOKEN.sub("hf_***", text)


def explain(error: BaseException, job: Job, left: str | None = None) -> CkptconvError:
    """The one error for whatever huggingface_hub raised. left: the ref of a pull request half done."""
    saying, cause = _find(error)
    response = getattr(cause, "response", None)
    if left is not None:
        job = replace(job, revision=left, create_pr=False)
        saying = replace(saying, hint="the pull request is open; finish it: {command}")
    words = {
        "repo": job.repo_id,
        "user": job.user or "this account",
        "endpoint": job.endpoint,
        "revision": job.revision or "main",
        "folder": shlex.quote(job.folder),
        "command": job.command,
        "status": str(getattr(response, "status_code", "")),
    }
    told = CkptconvError(
        scrub(saying.what.format(**words), job.token),
        where=scrub(f"{job.endpoint}/{job.repo_id}", job.token),
        found=_said(cause, job.token) if saying.quote else None,
        hint=scrub(saying.hint.format(**words), job.token),
    )
    chain = "".join(f"{link} {link!r}" for link in _chain(error))
    told.__cause__ = error if scrub(chain, job.token) == chain else None
    return told


def _find(error: BaseException) -> tuple[Saying, BaseException]:
    """The row for an error or, where huggingface_hub wrapped it, for what it was raised from."""
    vague: BaseException | None = None
    for link in _chain(error):
        if "Invalid metadata in README.md" in str(link):
            return _README, link
        names = [kind.__name__ for kind in type(link).__mro__]
        named = next((name for name in names if name in _BY_NAME), None)
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None and named in (None, "OSError"):
            return _BY_STATUS.get(status, _SERVER if status >= 500 else _OTHER), link
        if named == "OSError":  # also what huggingface_hub wraps a failed request in
            vague = vague or link
        elif named is not None:
            return _BY_NAME[named], link
    return (_BY_NAME["OSError"], vague) if vague else (_OTHER, error)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _said(error: BaseException, token: str | None) -> str:
    """The server's own words, or the error's first line, cut to a line's length."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return scrub(lines[0] if lines else text, token)[:200]
