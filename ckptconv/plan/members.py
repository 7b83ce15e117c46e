"""Which pattern of a class a tensor's name matches."""

from __future__ import annotations

import re

from ckptconv.models.skeleton import Member, Numbers, Skeleton

_NUMBER = re.compile(r"(?:^|(?<=\.))\d+(?=\.|$)")


def member_of(skeleton: Skeleton, name: str) -> tuple[Member, Numbers] | None:
    """The pattern that a name matches, and the numbers at its stars; None for a name that the class does not have.

    Args:
        skeleton: the class.
        name: the name, its numbers between dots; see `numbers_apart`.
    """
    numbers = tuple(map(int, _NUMBER.findall(name)))
    for member, fixed in skeleton.by_star.get(_NUMBER.sub("*", name), ()):
        if all(f is None or f == n for f, n in zip(fixed, numbers, strict=True)):
            return member, tuple(n for f, n in zip(fixed, numbers, strict=True) if f is None)
    return None
