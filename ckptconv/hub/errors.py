"""Explains huggingface_hub's errors in one sentence, with the command to type next. A token is never repeated.

huggingface_hub changed its HTTP library between major versions, so errors are recognised by class name, not by class.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from ckptconv.errors import CkptconvError, Kind
from ckptconv.storage.errors import Unavailable

_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{8,}|(?<=Bearer )\S+")
_PASSWORD = re.compile(r"//[^/@]+@")
# Errors of a connection, by the names of httpx and requests.
_NETWORK = ("ConnectError", "ProxyError", "TimeoutException", "Timeout", "TransportError", "ConnectionError")
T = TypeVar("T")


@dataclass(frozen=True)
class Explanation:
    """The explanation of one kind of error. {repo}, {endpoint}, {command} and so on are filled in.

    Args:
        what: the sentence.
        hint: what to do.
        quote: repeat the server's own message, if the sentence alone does not tell the user enough.
    """

    what: str
    hint: str
    quote: bool = False


@dataclass(frozen=True)
class Explanations:
    """The explanations for one kind of request.

    Args:
        by_name: name of the error's class -> explanation.
        by_status: HTTP status -> explanation.
        server: for every status 5xx.
        other: for every other error.
        readme: for a model card that the Hub refuses.
    """

    by_name: Mapping[str, Explanation]
    by_status: Mapping[int, Explanation]
    server: Explanation
    other: Explanation
    readme: Explanation | None = None


def scrub(text: str, token: str | None) -> str:
    """Mask the token, and everything that looks like a token, in a text."""
    if token:
        text = text.replace(token, "hf_***")
    return _TOKEN.sub("hf_***", text)


def explain(
    error: BaseException,
    table: Explanations,
    words: Mapping[str, str],
    *,
    token: str | None,
    hint: str | None = None,
) -> CkptconvError:
    """Turn an error of huggingface_hub into a CkptconvError.

    Args:
        error: what huggingface_hub raised.
        table: the explanations for this kind of request.
        words: values for the placeholders in the table.
        token: the user's token, to mask it.
        hint: replaces the hint of the table.
    """
    explanation, cause = _find(error, table)
    status = getattr(getattr(cause, "response", None), "status_code", "")
    is_network = any(kind.__name__ in _NETWORK for kind in type(cause).__mro__)
    proxies = _proxies() if is_network else ""
    words = {**words, "status": str(status)}
    fails = is_network or (isinstance(status, int) and (status >= 500 or status == 429))
    explained = (Unavailable if fails else CkptconvError)(
        scrub(explanation.what.format(**words), token),
        where=scrub(f"{words['endpoint']}/{words['repo']}", token),
        found=_message(cause, token) if explanation.quote else None,
        hint=scrub((hint or explanation.hint).format(**words) + proxies, token),
        kind=Kind.ENVIRONMENT,
    )
    chain = "".join(f"{link} {link!r}" for link in _chain(error))
    explained.__cause__ = error if scrub(chain, token) == chain else None
    return explained


def guarded(step: Callable[[], T], explained: Callable[[Exception], CkptconvError]) -> T:
    """Run a step, and turn its errors into CkptconvErrors.

    Args:
        step: the step.
        explained: the CkptconvError for another error; see `explain`.
    """
    try:
        return step()
    except CkptconvError:
        raise
    except Exception as error:
        failure = explained(error)
    raise failure


def _find(error: BaseException, table: Explanations) -> tuple[Explanation, BaseException]:
    """The explanation of an error, or of its cause if huggingface_hub wrapped it."""
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
        if named == "OSError":  # huggingface_hub also wraps a failed request in an OSError
            vague = vague or link
        elif named is not None:
            return table.by_name[named], link
    return (table.by_name["OSError"], vague) if vague else (table.other, error)


def _proxies() -> str:
    """The proxies that requests go through, for a hint; their passwords are masked."""
    names = ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy")
    found = [f"{name}={_PASSWORD.sub('//***@', os.environ[name])}" for name in names if os.environ.get(name)]
    return f" (the environment sets {', '.join(found)})" if found else ""


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)


def _message(error: BaseException, token: str | None) -> str:
    """The server's own message, or the first line of the error, cut to the length of a line."""
    text = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return scrub(lines[0] if lines else text, token)[:200]
