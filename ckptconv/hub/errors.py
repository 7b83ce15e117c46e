"""What huggingface_hub raises, as one sentence with the command to type next. A token is never repeated.

huggingface_hub changed its HTTP library between major versions: errors are known by class name, not by class.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ckptconv.errors import CkptconvError, Kind

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")
T = TypeVar("T")


@dataclass(frozen=True)
class Saying:
    """One row of a table: a sentence and a hint, with {repo}, {endpoint}, {command} and so on to fill in.

    quote: repeat what the server said, because the sentence alone does not tell the user enough.
    """

    what: str
    hint: str
    quote: bool = False


@dataclass(frozen=True)
class Sayings:
    """A table: by the error's class, by the answer's status; server: 5xx; readme: a card that is refused."""

    by_name: Mapping[str, Saying]
    by_status: Mapping[int, Saying]
    server: Saying
    other: Saying
    readme: Saying | None = None


def scrub(text: str, token: str | None) -> str:
    """The text without the token and without anything that looks like one."""
    if token:
        text = text.replace(token, "hf_***")
    return _TOKEN.sub("hf_***", text)


def explain(
    error: BaseException,
    table: Sayings,
    words: Mapping[str, str],
    *,
    token: str | None,
    hint: str | None = None,
) -> CkptconvError:
    """The one error for whatever huggingface_hub raised. hint: in place of the table's."""
    saying, cause = _find(error, table)
    status = getattr(getattr(cause, "response", None), "status_code", "")
    words = {**words, "status": str(status)}
    told = CkptconvError(
        scrub(saying.what.format(**words), token),
        where=scrub(f"{words['endpoint']}/{words['repo']}", token),
        found=_said(cause, token) if saying.quote else None,
        hint=scrub((hint or saying.hint).format(**words), token),
        kind=Kind.ENVIRONMENT,
    )
    chain = "".join(f"{link} {link!r}" for link in _chain(error))
    told.__cause__ = error if scrub(chain, token) == chain else None
    return told


def guarded(step: Callable[[], T], explained: Callable[[Exception], CkptconvError]) -> T:
    """Run one step; what it raises becomes the one CkptconvError for it."""
    try:
        return step()
    except CkptconvError:
        raise
    except Exception as error:
        failure = explained(error)
    raise failure


def _find(error: BaseException, table: Sayings) -> tuple[Saying, BaseException]:
    """The row for an error or, where huggingface_hub wrapped it, for what it was raised from."""
    vague: BaseException | None = None
    for link in _chain(error):
        if table.readme and "Invalid metadata in README.md" in str(link):
            return table.readme, link
        names = [kind.__name__ for kind in type(link).__mro__]
        named = next((name for name in names if name in table.by_name), None)
        status = getattr(getattr(link, "response", None), "status_code", None)
        if status is not None and named in (None, "OSError"):
            other = table.server if status >= 500 else table.other
            return table.by_status.get(status, other), link
        if named == "OSError":  # also what huggingface_hub wraps a failed request in
            vague = vague or link
        elif named is not None:
            return table.by_name[named], link
    return (table.by_name["OSError"], vague) if vague else (table.other, error)


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
