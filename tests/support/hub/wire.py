"""A request and its answer, as the routes see them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from .store import Refused, User


@dataclass(frozen=True)
class Asked:
    """One request, decoded. hub, storage: the addresses of the Hub and of where large files lie."""

    method: str
    path: str
    query: Mapping[str, str]
    body: bytes
    user: User | None
    headers: Mapping[str, str]
    hub: str
    storage: str

    def json(self) -> dict:
        return json.loads(self.body or b"{}")

    @property
    def pull(self) -> bool:
        return self.query.get("create_pr") == "1"


@dataclass(frozen=True)
class Reply:
    """One answer. size: Content-Length where it is not that of the body (HEAD)."""

    status: int = 200
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    size: int | None = None


def as_json(value: object, status: int = 200, headers: Mapping[str, str] | None = None) -> Reply:
    return Reply(status, json.dumps(value).encode(), {"Content-Type": "application/json", **(headers or {})})


def refusal(refused: Refused) -> Reply:
    headers = {"X-Error-Message": refused.message}
    if refused.code:
        headers["X-Error-Code"] = refused.code
    return as_json({"error": refused.message}, refused.status, headers)
