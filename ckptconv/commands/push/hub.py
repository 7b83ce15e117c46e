"""Talks to the Hub through huggingface_hub for a push: sign in, open the repository, upload."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import CommitInfo, HfApi, ModelInfo, hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

from ckptconv import __version__
from ckptconv.commands.push.card import README, is_untouched
from ckptconv.commands.push.errors import Job
from ckptconv.errors import CkptconvError, Kind

if TYPE_CHECKING:
    from ckptconv.commands.push.run import Parcel


@dataclass(frozen=True)
class Target:
    """The repository of a push.

    Args:
        created: True if this push created the repository.
        commit: the commit of the revision before the push; None if there is none.
        keeps_card: True if somebody wrote the README.md there, so that it must not be replaced.
        pulls: the user's pull requests; None if they are not known.
        private: the visibility of the repository.
    """

    created: bool
    commit: str | None
    keeps_card: bool
    pulls: frozenset[int] | None
    private: bool


def connect(job: Job) -> HfApi:
    return HfApi(endpoint=job.endpoint, token=job.token, library_name="ckptconv", library_version=__version__)


def sign_in(api: HfApi, job: Job) -> Job:
    """The job with the user's name, which also completes a repository's name without an owner."""
    user = str(api.whoami()["name"])
    return replace(job, user=user, repo_id=job.repo_id if "/" in job.repo_id else f"{user}/{job.repo_id}")


def open_repo(api: HfApi, job: Job) -> Target:
    """Create the repository and the branch if they do not exist.

    A token without the right to write is refused here, before any file is read.

    Args:
        api: the Hub's client.
        job: the push.

    Raises:
        CkptconvError: --private contradicts an existing repository.
    """
    created = False
    try:
        info = api.model_info(job.repo_id)
    except RepositoryNotFoundError:
        api.create_repo(job.repo_id, private=job.private, exist_ok=True)
        created = True
        info = api.model_info(job.repo_id)
    if job.private is not None and bool(info.private) != job.private:
        have, want = ("private", "public") if info.private else ("public", "private")
        raise CkptconvError(
            f"{job.repo_id} exists and is {have}; nothing was uploaded",
            wanted=want,
            hint=f"hf repos settings {job.repo_id} --{want}",
            kind=Kind.TARGET,
        )
    if not (created or job.create_pr or job.pull_request):
        _may_write(api, job.repo_id)
    if job.revision and job.revision != "main":
        info = _open_revision(api, job.repo_id, job.revision)
    names = {item.rfilename for item in info.siblings or ()}
    keeps_card = README in names and not is_untouched(_read_card(api, job))
    pulls = _pulls(api, job) if job.create_pr else None
    return Target(created, info.sha, keeps_card, pulls, bool(info.private))


def upload(api: HfApi, job: Job, parcel: Parcel) -> CommitInfo:
    """Upload exactly the parcel's files, and a card if the folder lacks one, as a temporary folder of links.

    Args:
        api: the Hub's client.
        job: the push.
        parcel: the files to send.
    """
    with tempfile.TemporaryDirectory(prefix="ckptconv-push-") as name:
        stage = Path(name)
        for path, _ in parcel.files:
            target = stage / path
            target.parent.mkdir(parents=True, exist_ok=True)
            if path == README and parcel.card is not None:
                target.write_text(parcel.card, encoding="utf-8")
            elif path in parcel.cleaned:
                target.write_text(parcel.cleaned[path].text, encoding="utf-8", errors="backslashreplace")
            else:
                target.symlink_to((parcel.root / path).resolve())
        return api.upload_folder(
            repo_id=job.repo_id,
            folder_path=stage,
            commit_message=job.message or "Upload with ckptconv",
            commit_description=job.description,
            revision=job.revision,
            create_pr=job.create_pr,
        )


def left_open(api: HfApi, job: Job, target: Target) -> str | None:
    """The ref of a pull request that a failed upload opened, so that the user can resume it and not open a second one."""
    if target.pulls is None:
        return None
    try:
        new = _pulls(api, job) - target.pulls
    except Exception:  # the Hub has just failed and may fail again; we report the first failure
        return None
    return f"refs/pr/{max(new)}" if new else None


def _may_write(api: HfApi, repo_id: str) -> None:
    """Raise HfHubHTTPError if the token may not write. An older huggingface_hub cannot ask, so nothing is checked."""
    try:
        api.auth_check(repo_id, write=True)
    except HfHubHTTPError as error:
        if error.response.status_code in (401, 403):
            raise
    except TypeError:  # an older huggingface_hub has no `write`
        return


def _open_revision(api: HfApi, repo_id: str, revision: str) -> ModelInfo:
    try:
        return api.model_info(repo_id, revision=revision)
    except RevisionNotFoundError:
        if revision.startswith("refs/"):
            raise
    api.create_branch(repo_id, branch=revision, exist_ok=True)
    return api.model_info(repo_id, revision=revision)


def _read_card(api: HfApi, job: Job) -> str:
    with tempfile.TemporaryDirectory(prefix="ckptconv-card-") as name:
        path = hf_hub_download(
            job.repo_id, README, revision=job.revision, local_dir=name, endpoint=job.endpoint, token=api.token
        )
        return Path(path).read_text(encoding="utf-8", errors="replace")


def _pulls(api: HfApi, job: Job) -> frozenset[int]:
    found = api.get_repo_discussions(job.repo_id, author=job.user, discussion_type="pull_request")
    return frozenset(pull.num for pull in found if pull.author == job.user)
