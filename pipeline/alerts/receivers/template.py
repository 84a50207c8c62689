"""A body made by a Jinja template, for whatever has no receiver of its own.

The sandbox keeps a template from Python's internals; it has no loader, so it includes no files. It can take long all
the same: who writes the config is trusted with that.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import orjson
from jinja2 import StrictUndefined, Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from pipeline.alerts.change import Message
from pipeline.alerts.told import LIMIT, told
from pipeline.errors import TemplateBodyError

_LIMITS = (LIMIT, LIMIT // 3, 2_000)  # bytes of changes, tried in turn, for a template may say each thing twice


def compile_template(text: str) -> Template:
    """A template, ready.

    Raises
    ------
    TemplateBodyError
        It is none.
    """
    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, autoescape=False)
    environment.filters["tojson"] = lambda value: orjson.dumps(value).decode()  # Jinja's own escapes for HTML
    try:
        return environment.from_string(text)
    except TemplateError as error:
        message = f"the template is wrong at line {getattr(error, 'lineno', 1)}: {error}"
        raise TemplateBodyError(message) from None


def body_of(message: Message, template: Template, *, is_json: bool) -> bytes:
    """The body, under 20 kB.

    It is given `changes` (as in docs/schemas/webhook.json), `id`, `repeat` and `test`.

    Raises
    ------
    TemplateBodyError
        The template fails on these changes, or makes too much, or no JSON where it said so.
    """
    body = None
    for limit in _LIMITS:
        body = _rendered(template, changes=told(message.changes, limit=limit), id=message.id,
                         repeat=message.is_repeat, test=message.is_test)  # fmt: skip
        if body is not None:
            break
    if body is None:
        sentence = f"the template makes {LIMIT // 1000} kB or more; let it say less of each change"
        raise TemplateBodyError(sentence)
    if is_json:
        try:
            orjson.loads(body)
        except orjson.JSONDecodeError as error:
            sentence = (
                f"the template makes no JSON ({error}); write texts as {{{{ text|tojson }}}}, or set content_type"
            )
            raise TemplateBodyError(sentence) from None
    return body


def _rendered(template: Template, **values: Any) -> bytes | None:
    """What a template makes, or None where it is too long."""
    try:
        return _joined(template.generate(**values))
    except Exception as error:  # a template calls what it likes, with what it likes
        kind = "" if isinstance(error, TemplateError) else f"{type(error).__name__}: "
        message = f"the template fails: {kind}{str(error)[:400]}"
        raise TemplateBodyError(message) from None


def _joined(pieces: Iterable[str]) -> bytes | None:
    body = bytearray()
    for piece in pieces:
        body += piece.encode()
        if len(body) >= LIMIT:
            return None
    return bytes(body)
