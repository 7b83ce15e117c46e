"""Structure, integrity, values and sanity of a model folder or a checkpoint; see `run.verify`."""

from ckptconv.commands.verify.records import Difference, Layer, Problem, Slice, Verified
from ckptconv.commands.verify.run import verify

__all__ = ["Difference", "Layer", "Problem", "Slice", "Verified", "verify"]
