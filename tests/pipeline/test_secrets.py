"""Secrets: read from where the config says, and shown by nothing."""

from __future__ import annotations

import copy
import json
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from pipeline.errors import ConfigError
from pipeline.secrets import HIDE, Secret


class Holder(BaseModel):
    """A section with a secret."""

    secret: Secret
    other: Secret | None = None


def test_a_secret_is_read_from_a_variable_or_a_file(tmp_path: Path) -> None:
    """White space around it is no part of it; what changes is read anew."""
    assert Secret("env:KEY").read({"KEY": " a\n"}) == "a"
    path = tmp_path / "key"
    path.write_text("ä b\r\n")
    secret = Secret(f"file:{path}")
    assert secret.read() == "ä b"
    path.write_text("c")
    assert secret.read() == "c"


def test_what_cannot_be_read_is_said(tmp_path: Path) -> None:
    """A variable that is not set, a file that is missing, empty or no text: one sentence each."""
    with pytest.raises(ConfigError, match="a secret is missing: the environment variable KEY is not set"):
        Secret("env:KEY").read({})
    with pytest.raises(ConfigError, match=r"nowhere cannot be read .No such file"):
        Secret(f"file:{tmp_path}/nowhere").read()
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ConfigError, match="is empty; put the secret"):
        Secret(f"file:{tmp_path}/empty").read()
    (tmp_path / "bytes").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is no text"):
        Secret(f"file:{tmp_path}/bytes").read()


@given(
    st.one_of(
        st.text(),
        st.sampled_from(["env:A_1", "file:/a b", "env:a b", "file:"]),
        st.integers(),
        st.lists(st.text()),
        st.none(),
    )
)
def test_what_is_no_reference_is_refused_and_not_shown(value: object) -> None:
    """Least of all when somebody wrote the secret itself; what is one survives a copy and a pickle."""
    if isinstance(value, str) and re.fullmatch(r"env:[A-Za-z_][A-Za-z0-9_]*|file:.+", value):
        found = Holder.model_validate({"secret": value}).secret
        assert pickle.loads(pickle.dumps(found)) == copy.deepcopy(found) == found
        return
    with pytest.raises(ValidationError) as caught:
        Holder.model_validate({"secret": value})
    said = [error["msg"] for error in caught.value.errors()]
    assert said == ["a secret is written as env:NAME or file:PATH, so that it stands in no config"]


def test_nothing_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither text nor dumps; equal ones are those of one place."""
    monkeypatch.setenv("KEY", "hunter2")
    holder = Holder.model_validate({"secret": "env:KEY"})
    assert holder.secret.read() == "hunter2"
    shown = [repr(holder), str(holder), f"{holder.secret}", holder.model_dump_json(context=HIDE)]
    assert all("***" in text and "KEY" not in text and "hunter2" not in text for text in shown)
    assert json.loads(holder.model_dump_json()) == {"secret": "env:KEY", "other": None}
    assert Holder.model_validate(holder.model_dump()) == holder
    assert holder == Holder(secret=Secret("env:KEY")) != Holder(secret=Secret("env:OTHER"))
