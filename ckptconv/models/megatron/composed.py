"""Models that are made of several: a language model of a known table under a prefix, towers and projectors.

The language model's own table is chosen by its nested config, so a new model of known parts is one line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from ckptconv.errors import CkptconvError, Kind
from ckptconv.models.family import Config, Family, Rule, Same, within
from ckptconv.models.nested import text_of
from ckptconv.models.pattern import Pattern

Form = tuple[Rule, ...]


@dataclass(frozen=True)
class ByConfig:
    """A table whose lines depend on config.json.

    name: the model's name, for messages.
    make: returns the table for a config; for a model inside another, for the language model's own config.
    """

    name: str
    make: Callable[[Config], Family]

    def family(self, config: Config) -> Family:
        """Return the table for a config.

        Raises:
            CkptconvError: the config lacks a key that decides the table.
        """
        try:
            return self.make(text_of(config))
        except KeyError as error:
            raise CkptconvError(
                f"config.json does not have what decides the table of {self.name}",
                wanted=error.args[0],
                hint="pass the trained model: --config DIR",
            ) from error


@dataclass(frozen=True)
class Composed:
    """A language model and what else there is around it.

    name: the trainer's name, for messages.
    languages: model type of a language model -> its table.
    body: the Hub's prefix in place of the language model's own `model.`.
    head: the Hub's prefix in place of the language model's own `lm_head.`.
    forms: the towers and projectors as each trainer stores them. If there are several, the stored name that the first
        rule of a form matches tells which one it is.
    language: the table of the language model, if it is always the same; otherwise the nested config's model type decides.
    prefixes: Megatron's prefixes of the language model; each trainer has one of them.
    """

    name: str
    languages: Mapping[str, Family | ByConfig]
    body: str
    head: str = "lm_head."
    forms: tuple[Form, ...] = ()
    language: Family | None = None
    prefixes: tuple[str, ...] = ("language_model.",)

    def family(self, config: Config) -> Family:
        """Return the table for a config.

        Raises:
            CkptconvError: the language model inside has no table.
        """
        if self.language is not None:
            return self.around(self.language)
        kind = str(text_of(config).get("model_type"))
        if kind not in self.languages:
            raise CkptconvError(
                f"no table for the language model {kind!r} inside {self.name}",
                wanted=", ".join(sorted(self.languages)),
                hint="add a table of about 20 lines (docs/adding-a-model.md); inspect works without one",
                kind=Kind.UNSUPPORTED,
            )
        language = self.languages[kind]
        return self.around(language if isinstance(language, Family) else language.family(config))

    def around(self, language: Family) -> Family:
        """Return the table of the whole model with this language model inside."""
        inner = self._inside(language, self.prefixes)
        if len(self.forms) == 1:
            return _with(inner, self.forms[0])
        forms = tuple((form[0].trained, _with(inner, form)) for form in self.forms)
        return replace(inner, variants=forms + inner.variants)

    def _inside(self, family: Family, prefixes: tuple[str, ...]) -> Family:
        """Return a language model's table under Megatron's prefixes, its variants included."""
        return Family(
            self.name,
            tuple(rule for prefix in prefixes for rule in within(family.rules, prefix, self._hub)),
            tuple(
                (Pattern(prefix + mark.text), self._inside(one, (prefix,)))
                for prefix in prefixes
                for mark, one in family.variants
            ),
            tuple((Pattern(self._hub(copy.text)), self._hub(of)) for copy, of in family.copies),
        )

    def _hub(self, name: str) -> str:
        """Return this model's Hub name for one of the language model; a value head and MTP's own names stay.

        Nemotron-H's own `model.` is `backbone.`.
        """
        for old, new in (("model.", self.body), ("backbone.", self.body), ("lm_head.", self.head)):
            if name.startswith(old):
                return new + name.removeprefix(old)
        return name


def _with(family: Family, form: Form) -> Family:
    variants = tuple((mark, _with(one, form)) for mark, one in family.variants)
    return replace(family, rules=form + family.rules, variants=variants)


def under(prefixes: Mapping[str, str]) -> Form:
    """Return rules for modules that keep the Hub's names inside. prefixes: Megatron's prefix -> the Hub's."""
    return tuple(Same(trained + "{rest}", hub + "{rest}") for trained, hub in prefixes.items())
