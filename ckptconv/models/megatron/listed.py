"""How a model type is listed: its title, its table, and what proves the table."""

from __future__ import annotations

from dataclasses import dataclass

from ckptconv.models.family import Config, Family
from ckptconv.models.megatron.composed import ByConfig, Composed


@dataclass(frozen=True)
class Listed:
    """One model type.

    title: its name in the documentation.
    table: its family, a composition of several, or one that depends on the config.
    writers: the programs whose checkpoints became the model that was put in, bit for bit; a fixture holds each.
    source: the project and file that the table follows, if no checkpoint of a real writer could be made.
    """

    title: str
    table: Family | Composed | ByConfig
    writers: tuple[str, ...] = ()
    source: str = ""

    def family(self, config: Config) -> Family:
        """Return the table for a config.

        Raises:
            CkptconvError: the language model inside is not known.
        """
        return self.table if isinstance(self.table, Family) else self.table.family(config)

    @property
    def caution(self) -> str:
        """Return what the user should know about a table that no real checkpoint has confirmed, or ""."""
        if self.writers:
            return ""
        return f"the table of {self.title} follows the source of {self.source}; no real checkpoint has confirmed it"


def proven(title: str, table: Family | Composed | ByConfig, *writers: str) -> Listed:
    """List a model type that real checkpoints have confirmed. writers: the programs that made them."""
    return Listed(title, table, writers)


def by_source(title: str, table: Family | Composed | ByConfig, source: str) -> Listed:
    """List a model type whose table follows a source. source: project and file."""
    return Listed(title, table, source=source)
