"""Checkpoint + what the model is + options -> Plan: every output byte, where it comes from, and what is left out.

All that can be wrong is found here, from metadata, before a byte is written. The ledger closes the plan.
"""

from ckptconv.plan.make import make_plan
from ckptconv.plan.records import ADAPTER_FOLDER, Dropped, Options, Output, Plan

__all__ = ["ADAPTER_FOLDER", "Dropped", "Options", "Output", "Plan", "make_plan"]
