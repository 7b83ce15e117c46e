"""Structure, integrity, values, sanity and behaviour of a model folder or a checkpoint; see `run.verify`."""

from ckptconv.commands.verify.records import PROMPT, Difference, Layer, Problem, Verified
from ckptconv.commands.verify.run import verify
from ckptconv.tensors.boxes import Slice

__all__ = ["PROMPT", "Difference", "Layer", "Problem", "Slice", "Verified", "verify"]
