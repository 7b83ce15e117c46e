"""The packages that only some commands need. inspect, merge and verify --against work without torch and transformers."""

from __future__ import annotations

from importlib.util import find_spec

from ckptconv.errors import CkptconvError, Kind

_PUBLISHED = {"ray": "'ckptconv[ray]'"}  # module -> what pip installs, where that has another name


def require_packages(what: str, *names: str) -> None:
    """Refuse what needs a package that is not installed. Nothing is imported.

    Args:
        what: what needs them, such as "verify --logits".
        names: the modules.

    Raises:
        CkptconvError: names every missing package, with the command that installs them.
    """
    if missing := missing_of(*names):
        raise CkptconvError(
            f"{what} needs {_joined(missing)}",
            found="not installed",
            hint=f"pip install {' '.join(_PUBLISHED.get(name, name) for name in missing)}",
            kind=Kind.ENVIRONMENT,
        )


def missing_of(*names: str) -> list[str]:
    """The modules that are not installed. Nothing is imported."""
    return [name for name in names if find_spec(name) is None]


def _joined(names: list[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
