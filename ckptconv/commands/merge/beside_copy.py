"""Asks the installed transformers, while the weights are written, which tensors a class has that the shipped data lacks.

Importing torch and transformers takes seconds, which a long copy hides: a second process builds the class on the meta
device, and its answer is awaited before the folder is published. A class that it cannot build is a note, never a refusal.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ckptconv.errors import Kind
from ckptconv.models.skeleton import skeleton_of
from ckptconv.plan import Misfit, NotTheModel, Plan, refusal

if TYPE_CHECKING:
    import subprocess  # at run time only where it is needed: every merge imports this module

LONG = 8 << 30  # bytes; writing them takes longer than the import and the build
_SECONDS = 120  # how long a class may take to build after the last byte was written
_NEEDED = ("torch", "transformers", "accelerate")


class Asked:
    """The question to the second process; nothing is asked where the answer is known, or where the copy is short.

    Args:
        plan: the plan whose tensors are checked.
        where: the checkpoint's folder, for messages.
    """

    def __init__(self, plan: Plan, where: Path) -> None:
        self._plan, self._config, self._where = plan, plan.config or {}, where
        self._process: subprocess.Popen[str] | None = None
        self.wanted = plan.nbytes >= LONG and not plan.is_adapter and _is_unknown_here(self._config)

    @contextmanager
    def running(self) -> Iterator[Asked]:
        """Run the second process, and end it if the block ends without its answer."""
        if self.wanted:
            import subprocess

            shapes = {name: list(output.shape) for name, output in self._plan.outputs.items()}
            question = json.dumps({"config": self._config, "shapes": shapes})
            self._process = subprocess.Popen(
                [sys.executable, "-m", "ckptconv.commands.verify.on_meta"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
            )
            assert self._process.stdin is not None
            try:
                self._process.stdin.write(question)
                self._process.stdin.close()
            except BrokenPipeError:  # it ended at once; its answer is empty
                pass
        try:
            yield self
        finally:
            if self._process is not None:
                self._process.kill()
                self._process.wait()

    def notes(self) -> list[str]:
        """Wait for the answer.

        Returns:
            What was checked, or why it could not be; [] where nothing was asked.

        Raises:
            NotTheModel: the tensors are not those of the class.
        """
        if self._process is None:
            return []
        import subprocess

        assert self._process.stdout is not None
        try:
            self._process.wait(_SECONDS)
            answer: Mapping[str, Any] = json.loads(self._process.stdout.read())
        except (subprocess.TimeoutExpired, ValueError):
            return ["the installed transformers could not be asked for the tensors of this class"]
        if why := answer.get("why"):
            return [f"the installed transformers could not tell the tensors of this class: {why}"]
        if answer["foreign"] or answer["missing"]:
            raise refusal(Misfit(answer["foreign"], answer["missing"]), answer["architecture"], self._where)
        for name, found, wanted in answer["wrong"]:
            raise NotTheModel(
                "config.json does not match these tensors",
                where=self._where,
                found=f"{name} {found}",
                wanted=f"{wanted} in {answer['architecture']} of the installed transformers",
                hint="name the right model's folder with --config DIR",
                kind=Kind.DOES_NOT_FIT,
            )
        return [
            f"while the weights were written, names and shapes were compared with {answer['architecture']} of the installed "
            f"transformers {answer['version']}: they are the same"
        ]


def _is_unknown_here(config: Mapping[str, Any]) -> bool:
    """Whether the shipped data lacks the class and the installed transformers lists its model type."""
    if skeleton_of(config) is not None or not all(map(find_spec, _NEEDED)):
        return False
    from ckptconv.models import installed

    return installed.lists(str(config.get("model_type")))
