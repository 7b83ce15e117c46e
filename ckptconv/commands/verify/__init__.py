"""Structure, integrity, values, sanity and behaviour of a model folder or a checkpoint; see `run.verify`."""

from ckptconv.commands.verify.records import PROMPT, Difference, Layer, Problem, Slice, Verified
from ckptconv.commands.verify.run import Events, verify

__all__ = ["PROMPT", "Difference", "Events", "Layer", "Problem", "Slice", "Verified", "verify"]
