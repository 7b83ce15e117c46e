"""Plans a merge: every output byte, where it comes from, and what is left out.

Errors are found here, from metadata, before a byte is written. Only one question is about stored values: is a head that
the config ties still equal to its embedding? The caller of `make_plan` answers it. At the end the ledger proves the plan.
"""

from ckptconv.plan.fit import examined, require_fit, why_unchecked
from ckptconv.plan.make import make_plan
from ckptconv.plan.misfit import Misfit, NotTheModel, refusal
from ckptconv.plan.options import Dtype, Layout, LoraMode, Mtp, Options, options_of
from ckptconv.plan.records import ADAPTER_FOLDER, Dropped, Output, Plan
from ckptconv.plan.tied import Equal, NeedsReading, unread

__all__ = [
    "ADAPTER_FOLDER",
    "Dropped",
    "Dtype",
    "Equal",
    "Layout",
    "LoraMode",
    "Misfit",
    "Mtp",
    "NeedsReading",
    "NotTheModel",
    "Options",
    "Output",
    "Plan",
    "examined",
    "make_plan",
    "options_of",
    "refusal",
    "require_fit",
    "unread",
    "why_unchecked",
]
