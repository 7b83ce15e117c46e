"""Keeps huggingface_hub's output off the terminal, except its progress bars if they are wanted."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet(bars: bool) -> Iterator[None]:
    """Silence huggingface_hub's log lines and warnings, and its bars unless `bars`; restore its settings at the end."""
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    log = logging.getLogger("huggingface_hub")
    level, disabled = log.level, are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        log.setLevel(logging.CRITICAL)
        if not bars:
            disable_progress_bars()
        try:
            yield
        finally:
            log.setLevel(level)
            if not bars and not disabled:
                enable_progress_bars()
