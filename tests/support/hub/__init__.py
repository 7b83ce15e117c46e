"""A Hub on this machine: the HTTP API of huggingface.co that a push and a load need, with faults on request.

`hub` in fixture.py is the pytest fixture; `Hub` in server.py is the server; store.py holds its state.
"""

from .bench import Bench
from .server import OTHER_TOKEN, READ_TOKEN, TOKEN, Fault, Hub, Seen

__all__ = ["OTHER_TOKEN", "READ_TOKEN", "TOKEN", "Bench", "Fault", "Hub", "Seen"]
