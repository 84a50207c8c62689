"""Secrets of the config: a key says where one is kept, and nothing that we write says what it is."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pydantic_core
from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler, SerializationInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema

from pipeline.errors import ConfigError

HIDDEN = "***"
HIDE = "hide secrets"  # as the context of a dump
_MOST_BYTES = 65_536
_PLACE = re.compile(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+")
# Under this type the config's errors leave out what was found, which may be the secret itself.
ERROR_TYPE = "secret"


class Secret:
    """Where a secret is kept: `env:NAME`, an environment variable, or `file:PATH`.

    It is read when it is needed, and each time anew, so a command that has no use for it runs without it, and a file
    may be renewed. Text that is no such reference is refused: a secret stands in no config. `str` and
    `repr` show `***`, dumps and errors the place at most.
    """

    __slots__ = ("place",)

    def __init__(self, place: str) -> None:
        if not _PLACE.fullmatch(place):
            message = "a secret is written as env:NAME or file:PATH, so that it stands in no config"
            raise ValueError(message)
        self.place = place

    def read(self, environment: Mapping[str, str] | None = None) -> str:
        """The secret, without white space around it.

        Raises
        ------
        ConfigError
            The variable is not set, the file cannot be read, or there is nothing in it.
        """
        kind, _, name = self.place.partition(":")
        if kind == "env":
            text = (os.environ if environment is None else environment).get(name, "")
            where = f"the environment variable {name} is not set"
        else:
            text, where = _read_file(Path(name)), f"the file {name} is empty"
        if not (text := text.strip()):
            message = f"a secret is missing: {where}; put the secret there"
            raise ConfigError(message)
        return text

    def __repr__(self) -> str:
        return f"Secret({HIDDEN!r})"

    def __str__(self) -> str:
        return HIDDEN

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place)

    def __reduce__(self) -> tuple[type[Secret], tuple[str]]:
        return Secret, (self.place,)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Text of one of the two forms."""
        return {"type": "string", "pattern": f"^({_PLACE.pattern})$"}

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """A reference as text comes in, and goes out: what is dumped is loaded. With the context HIDE it is `***`."""
        return core_schema.no_info_plain_validator_function(
            _parse, serialization=core_schema.plain_serializer_function_ser_schema(_dumped, info_arg=True)
        )


def _dumped(secret: Secret, info: SerializationInfo) -> str:
    return HIDDEN if info.context == HIDE else secret.place


def unseen(sentence: str) -> pydantic_core.PydanticCustomError:
    """An error of a setting that is told without its value, for that may be a secret in the wrong place."""
    return pydantic_core.PydanticCustomError(ERROR_TYPE, "{sentence}", {"sentence": sentence})


def _parse(value: object) -> Secret:
    if isinstance(value, Secret):
        return value
    try:
        return Secret(value if isinstance(value, str) else "")
    except ValueError as error:
        raise unseen(str(error)) from None


def _read_file(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return file.read(_MOST_BYTES).decode()
    except OSError as error:
        message = f"a secret is missing: the file {path} cannot be read ({error.strerror}); put the secret there"
    except UnicodeDecodeError:
        message = f"the file {path} is no text, so it holds no secret that can be used; write the secret as UTF-8"
    raise ConfigError(message)
