"""Sends a model folder to the Hub: it checks the folder, the token and the repository, then uploads. A rerun resumes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import quote

from ckptconv.commands.progress import OnProgress, Progress
from ckptconv.commands.push.card import README, model_card
from ckptconv.commands.push.errors import Job, explain
from ckptconv.commands.push.folder import check_folder, check_structure, choose_files, is_wanted
from ckptconv.commands.push.private import Cleaned, cleaned
from ckptconv.errors import CkptconvError, Kind
from ckptconv.hub.errors import guarded
from ckptconv.hub.names import without_address
from ckptconv.hub.quiet import quiet
from ckptconv.publish.receipt import RECEIPT
from ckptconv.storage import pushed

if TYPE_CHECKING:
    from huggingface_hub import CommitInfo

T = TypeVar("T")


@dataclass(frozen=True)
class Pushed:
    """The result of a push, or with `dry_run` what it would do.

    Args:
        repo_id: "org/name".
        url: the page to look at.
        commit: the commit; None for a dry run.
        pull_request: the URL of the pull request; None if there is none.
        files: (path, bytes) of all files of the push, also those that the Hub had already.
        nbytes: the bytes of these files.
        dry_run: True if nothing was sent.
        created: True if the push created the repository.
        uploaded: False if the Hub had all files already, so that no commit was made.
        private: the visibility of the repository; None for a dry run.
        removed: what was taken out of files, since it tells about this machine: "config.json: _name_or_path".
    """

    repo_id: str
    url: str
    commit: str | None
    pull_request: str | None
    files: tuple[tuple[str, int], ...]
    nbytes: int
    dry_run: bool
    created: bool
    uploaded: bool
    removed: tuple[str, ...] = ()
    private: bool | None = None


@dataclass(frozen=True)
class Parcel:
    """The files of one push.

    Args:
        root: the model folder.
        files: (path, bytes) of each.
        card: the text of a README.md that is sent although the folder does not have it; None if there is none.
        cleaned: path -> what is sent in place of the file, which names a path of this machine.
    """

    root: Path
    files: tuple[tuple[str, int], ...]
    card: str | None
    cleaned: Mapping[str, Cleaned]

    @property
    def nbytes(self) -> int:
        return sum(nbytes for _, nbytes in self.files)

    def without_card(self) -> Parcel:
        if self.card is None:
            return self
        files = tuple(file for file in self.files if file[0] != README)
        return Parcel(self.root, files, None, self.cleaned)


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    commit_description: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    token: str | None = None,
    dry_run: bool = False,
    endpoint: str | None = None,
    on_progress: OnProgress | None = None,
    bars: bool = False,
) -> Pushed:
    """Upload a Hugging Face model folder to the Hub; the same call again resumes it.

    Args:
        folder: the model folder.
        repo_id: "org/name"; it is created if it does not exist.
        private: the visibility of a new repository. None uses the account's default.
        revision: a branch, which is created if it does not exist, or "refs/pr/N".
        create_pr: open a pull request and do not commit to the branch.
        commit_message: the first line of the commit message.
        commit_description: the rest of the commit message.
        include: patterns of files to send, as in the hf command line.
        exclude: patterns of files not to send.
        token: the access token; None for the one that huggingface_hub finds.
        dry_run: check the folder and list the files, without a request.
        endpoint: of another Hub; None for the one that huggingface_hub finds.
        on_progress: called with a `Progress` once per step, no finer: huggingface_hub has no hook for it.
        bars: whether huggingface_hub may draw its own bars on stderr.

    Returns:
        The page to look at, and what was sent.

    Raises:
        CkptconvError: the folder is not a model, or the Hub refuses something.

    Example:
        >>> ckptconv.push("model", "org/name", private=True).url
        'https://huggingface.co/org/name'
    """
    say = on_progress or (lambda step: None)
    repo_id = _repo_id(repo_id)
    root = pushed(folder)
    if not root.is_dir() and Path(repo_id).is_dir():
        hint = f"the folder comes first: ckptconv push {repo_id} {folder}"
        raise CkptconvError("no such folder", where=root, hint=hint, kind=Kind.NOT_A_CHECKPOINT)
    say(Progress("upload", what=f"checking {root}"))
    model = check_folder(root)
    files = choose_files(root, include, exclude)
    job = Job(
        str(folder),
        repo_id,
        _address(endpoint),
        private=private,
        revision=revision,
        create_pr=create_pr,
        message=commit_message,
        description=commit_description,
        include=tuple(include),
        exclude=tuple(exclude),
    )
    job = _explained(job, lambda: _ready(job, token, online=not dry_run))
    clean = cleaned(root, [name for name, _ in files])
    files = [(name, len(clean[name].text.encode()) if name in clean else size) for name, size in files]
    parcel = Parcel(root, tuple(files), None, clean)
    if not (root / README).exists() and is_wanted(README, include, exclude):
        sent = clean.get(RECEIPT)
        card = model_card(model, repo_id, sent.text.encode() if sent else None)
        parcel = Parcel(root, tuple(sorted([*files, (README, len(card.encode()))])), card, clean)
    if dry_run:
        check_structure(root)
        return _record(job, parcel, None, created=False, uploaded=False)
    return _send(job, parcel, say, bars)


def check_push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    endpoint: str | None = None,
) -> None:
    """Check the token, the name and the rights before the model folder exists, and create the repository.

    Args:
        folder: where the model will be, for messages.
        repo_id: as in `push`, like the other keywords.

    Raises:
        CkptconvError: a check failed.
    """
    from ckptconv.commands.push import hub

    job = Job(str(folder), _repo_id(repo_id), _address(endpoint), private=private)
    with quiet(bars=False):
        job = _explained(job, lambda: _ready(job, token, online=True))
        api = hub.connect(job)
        job = _explained(job, lambda: hub.sign_in(api, job))
        _explained(job, lambda: hub.open_repo(api, job))


def _repo_id(text: str) -> str:
    """The name of a repository that is given as a name, as hf://org/name or as its page's address."""
    return re.sub(r"^hf:/{1,2}", "", without_address(text)).partition("@")[0]


def _explained(job: Job, step: Callable[[], T], left: Callable[[], str | None] = lambda: None) -> T:
    """Run a step, and turn its errors into CkptconvErrors. `left` returns the ref of an incomplete pull request."""
    return guarded(step, lambda error: explain(error, job, left()))


def _address(endpoint: str | None) -> str:
    from huggingface_hub import constants

    return (endpoint or constants.ENDPOINT).rstrip("/")


def _ready(job: Job, token: str | None, online: bool) -> Job:
    """The job with its token, after all checks that need no request."""
    from huggingface_hub import constants, get_token
    from huggingface_hub.errors import LocalTokenNotFoundError, OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(job.repo_id)
    if job.create_pr and job.revision not in (None, "main"):
        raise CkptconvError(
            "a new pull request always starts at main",
            found=f"--create-pr with --revision {job.revision}",
            hint=f"remove one of them: {replace(job, create_pr=False).command}",
            kind=Kind.USAGE,
        )
    if not online:
        return job
    if constants.is_offline_mode():
        raise OfflineModeIsEnabled
    token = token.strip() if token else get_token()
    if not token:
        raise LocalTokenNotFoundError
    if not re.fullmatch(r"[!-~]+", token):
        raise CkptconvError("the token has invalid characters", hint="hf auth login --force", kind=Kind.USAGE)
    return replace(job, token=token)


def _send(job: Job, parcel: Parcel, say: OnProgress, bars: bool) -> Pushed:
    from ckptconv.commands.push import hub

    api = hub.connect(job)
    with quiet(bars):
        say(Progress("upload", 0, parcel.nbytes, f"checking your token and write access on {job.endpoint}"))
        job = _explained(job, lambda: hub.sign_in(api, job))
    check_structure(parcel.root)  # takes seconds, so the token is checked before; it also resets the bars
    with quiet(bars):
        target = _explained(job, lambda: hub.open_repo(api, job))
        if target.keeps_card:
            parcel = parcel.without_card()
        say(Progress("upload", 0, parcel.nbytes, f"uploading {len(parcel.files)} files to {job.repo_id}"))
        commit = _explained(
            job,
            lambda: hub.upload(api, job, parcel),
            left=lambda: hub.left_open(api, job, target),
        )
    uploaded = commit.oid != target.commit
    result = "uploaded" if uploaded else "nothing changed"
    say(Progress("upload", parcel.nbytes, parcel.nbytes, result))
    pushed = _record(job, parcel, commit, created=target.created, uploaded=uploaded)
    return replace(pushed, private=target.private)


def _record(job: Job, parcel: Parcel, commit: CommitInfo | None, *, created: bool, uploaded: bool) -> Pushed:
    page = f"{job.endpoint}/{job.repo_id}"
    resumed = job.pull_request
    pull = f"{page}/discussions/{resumed}" if resumed is not None else (commit.pr_url if commit else None)
    branch = job.revision if job.revision != "main" and resumed is None else None
    return Pushed(
        repo_id=job.repo_id,
        url=pull or (f"{page}/tree/{quote(branch, safe='')}" if branch else page),
        commit=commit.oid if commit else None,
        pull_request=pull,
        files=parcel.files,
        nbytes=parcel.nbytes,
        dry_run=commit is None,
        created=created,
        uploaded=uploaded,
        removed=tuple(
            f"{name}: {', '.join(each.removed)}" for name, each in parcel.cleaned.items() if each.removed
        ),
    )
