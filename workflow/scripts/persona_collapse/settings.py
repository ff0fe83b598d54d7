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
    """An unknown key. It is reported before missing keys, because it is most likely a typo."""


class Settings(BaseModel):
    """A block of the config. The docstring of a subclass and its field descriptions are its
    documentation.

    Values keep their type: text is never read as a number, nor a number as text.
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
        """Arguments that the plugin could ask for but, with these settings, does not read."""
        return set()


def printable(key: str) -> str:
    """A key as shown in a one-line message."""
    return key if key.isprintable() else repr(key)


def _as_given(value: Any, check: Callable[[Any], Any]) -> Any:
    """Check a value but keep it as it is: 2 stays 2 even if 2.0 would be valid."""
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


#: Tag of a union, left out of a key's path in errors.
HIDDEN = "\0"
WORD, BLOCK = f"{HIDDEN}word", f"{HIDDEN}block"
#: Discriminator of a union of a word and a block, with the tags WORD and BLOCK.
WORD_OR_BLOCK = Discriminator(lambda value: BLOCK if isinstance(value, dict | Settings) else WORD)
AS_GIVEN = WrapValidator(_as_given)
DISTINCT = AfterValidator(_distinct)
#: An integer of at least 1.
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, le=LARGEST_SEED)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False), AS_GIVEN]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False), AS_GIVEN]
#: A share from 0 to 1, and a positive share.
Share = Annotated[float, Field(ge=0, le=1), AS_GIVEN]
SomeShare = Annotated[float, Field(gt=0, le=1), AS_GIVEN]
Names = Annotated[list[str], DISTINCT]
Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
