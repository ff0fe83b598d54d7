"""The base of every block of settings, and the kinds of values that blocks hold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    WrapValidator,
    model_validator,
)

from .chains import LARGEST_SEED
from .errors import choose


class UnknownKey(ValueError):
    """A key that a block does not have: most likely a misspelt one, so it is told before what is missing."""


class Settings(BaseModel):
    """A block of the config. A subclass's docstring and its fields' descriptions are its documentation.

    Values are taken as they are written: no text becomes a number, and no number text.
    """

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, protected_namespaces=(), validate_default=False
    )

    @model_validator(mode="before")
    @classmethod
    def _known_keys(cls, given: Any) -> Any:
        if isinstance(given, dict) and cls.model_config["extra"] == "forbid":
            known = [field.alias or name for name, field in cls.model_fields.items()]
            for key in given:
                if key not in known:
                    hint = choose(str(key), known, "the keys here are")
                    raise UnknownKey(f"{printable(str(key))}: unknown key; {hint}")
        return given

    def files(self) -> dict[str, str]:
        """Files that a plugin with these settings reads, by name."""
        return {}

    def unread(self) -> set[str]:
        """What the plugin could ask for and, with these settings, does not read."""
        return set()


def printable(key: str) -> str:
    """A key as it can stand in a line."""
    return key if key.isprintable() else repr(key)


def _as_given(value: Any, check: Callable[[Any], Any]) -> Any:
    """Checked and left as it is: 2 stays 2 where 2.0 would do too."""
    check(value)
    return value


def _distinct(values: list[Any]) -> list[Any]:
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{value!r} is given twice; remove one")
    return values


def exactly_one(block: Settings, *names: str, hint: str = "") -> None:
    """Raise ValueError unless one of these keys of a block is given, and no other."""
    given = [name for name in names if getattr(block, name) is not None]
    if len(given) != 1:
        raise ValueError(
            f"expected exactly one of {', '.join(names)}; got {', '.join(given) or 'none'}{hint}"
        )


#: A tag of a union that errors leave out of a key's path.
HIDDEN = "\0"
WORD, BLOCK = f"{HIDDEN}word", f"{HIDDEN}block"
#: Tells a union's word from its block, whose branches have the tags WORD and BLOCK.
WORD_OR_BLOCK = Discriminator(lambda value: BLOCK if isinstance(value, dict | Settings) else WORD)
AS_GIVEN = WrapValidator(_as_given)
DISTINCT = AfterValidator(_distinct)
#: A whole number of at least 1.
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AS_GIVEN]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AS_GIVEN]
#: A share from 0 to 1, and one that is more than nothing.
Share = Annotated[float, Field(ge=0, le=1), AS_GIVEN]
SomeShare = Annotated[float, Field(gt=0, le=1), AS_GIVEN]
Names = Annotated[list[str], DISTINCT]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
