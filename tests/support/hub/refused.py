"""What every refusal of a push must be."""

from __future__ import annotations

import traceback
from collections.abc import Callable

import pytest

from ckptconv.errors import CkptconvError, ExitCode

from .server import OTHER_TOKEN, READ_TOKEN, TOKEN


def refused(call: Callable[..., object], *args: object, **options: object) -> CkptconvError:
    """The refusal of a push: one sentence, exit code 2, and no token in anything that could be printed."""
    with pytest.raises(CkptconvError) as caught:
        call(*args, **options)
    error = caught.value
    assert error.code is ExitCode.FAILED
    assert "\n" not in error.what
    shown = f"{error} {error!r} {''.join(traceback.format_exception(error))}"
    for token in (TOKEN, READ_TOKEN, OTHER_TOKEN, "hf_wrong"):
        assert token not in shown
    return error
