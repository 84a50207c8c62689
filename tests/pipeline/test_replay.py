"""`offbeat replay`: the same score from the records alone, and what explains it; or a sentence that says why not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pipeline.anomaly_ids import AnomalyId
from pipeline.errors import UsageError
from pipeline.replay_command import replay_anomaly
from pipeline.settings import load_settings
from tests.kafka import PATIENCE_S, Stack, as_records, by_id, shop_events, write_untrained_bundle
from tests.pipeline.test_commands_kafka import fails

EXPLAINED = ("score", "p_value", "observed", "contributions", "expected", "would_be_normal", "earlier", "explained")


@pytest.mark.parametrize("text", ["", "orders", "orders/shop/0/57", "orders/shop/0/x/record", "orders/shop/0/1/other"])
def test_what_is_no_id_is_said_to_be_none(text: str) -> None:
    """With how one looks."""
    with pytest.raises(UsageError, match=r"is no id of an anomaly: these look like orders/shop\.orders/0/57/record"):
        AnomalyId.parse(text)


@pytest.mark.parametrize("text", ["a/b.c~2/3/4/window-99", "a/b/0/0/session", "x-1/t_u/12/34567/session-12"])
def test_an_id_is_read_back_as_it_was(text: str) -> None:
    """Whatever it names, with or without an epoch."""
    assert str(AnomalyId.parse(text)) == text


def replayed(stack: Stack, *arguments: str) -> dict[str, Any]:
    """What `--json` prints."""
    found: dict[str, Any] = json.loads(stack.run("replay", *arguments, "--json").stdout)
    return found


def test_anomalies_replay_to_the_score_that_was_told(stack: Stack, tmp_path: Path) -> None:
    """Records and sessions, from the topic and from a file, without a budget and with more of what came before."""
    stack.configure(stream={"explanations": {"passes": 1}})
    stack.score(as_records(shop_events(1, 60)))
    told = by_id(stack.read_json("anomalies"))
    assert {one["type"] for one in told.values()} == {"record", "session"}
    assert any(one["explained"] == "budget" for one in told.values())
    stack.write_back(file := tmp_path / "events.jsonl")
    checked = 0
    for kind in ("record", "session"):
        for one in [one for one in told.values() if one["type"] == kind][:4]:
            found = replayed(stack, one["id"])
            again = found["verdict"]
            assert (found["same_score"], found["told_score"], again["anomaly"]) == (True, one["score"], True)
            assert again["explained"] != "budget"
            for key in EXPLAINED if one["explained"] in {"full", "window"} else EXPLAINED[:5]:
                assert again[key] == one[key]
            assert again["context"][-len(one["context"]) :] == one["context"] or not one["context"]
            of_file = replayed(stack, one["id"], "--input", str(file))["verdict"]
            ends = {"ended", "observed"}  # a file ends there
            assert {k: v for k, v in of_file.items() if k not in ends} == {
                k: v for k, v in again.items() if k not in ends
            }
            checked += 1
    assert checked == 8
    text = stack.run("replay", next(iter(told))).stdout
    assert "That is the score that was told." in text
    assert "expected" in text


def test_a_session_that_began_before_what_is_read_may_differ(stack: Stack) -> None:
    """Then it says what the score was, and how to read more; retention says so itself."""
    events = [{"session": "a", "action": "view", "status": "ok", "ts": 1_700_000_000_000 + i} for i in range(9)]
    events += [{"session": "a", "action": "teleport", "status": "failed", "ts": 1_700_000_000_100}]
    stack.configure(stream={"promise": {"false_alarm_rate": 0.5}})
    stack.score(as_records(events))
    told = by_id(stack.read_json("anomalies"))
    (name,) = [i for i in told if i.endswith("/9/record")]
    assert replayed(stack, name)["same_score"] is True
    short = replayed(stack, name, "--back", "1")
    assert short["same_score"] is False
    assert "--back reads more" in short["why_not"][0]
    assert "The score that was told is" in stack.run("replay", name, "--back", "1").stdout


def test_what_cannot_be_replayed_is_said(stack: Stack, tmp_path: Path) -> None:
    """No such stream, no such record, a bundle that is gone, a verdict that is none: one sentence each."""
    assert fails(stack, 2, ("replay", "nonsense"), "is no id of an anomaly")
    assert fails(stack, 2, ("replay", "orders2/x/0/1/record"), "orders2")
    stack.score(as_records(shop_events(1, 20)))
    told = by_id(stack.read_json("anomalies"))
    name = next(iter(told))
    assert fails(stack, 1, ("replay", f"orders/{stack.source}/0/99999/record"), "there is no record 99999", "made anew")
    assert fails(stack, 1, ("replay", f"orders/{stack.source}/99/0/record"), "there is no such partition")
    assert fails(
        stack, 1, ("replay", name.replace("/record", "/window-5").replace("/session", "/window-5")), "no verdict"
    )
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    assert fails(stack, 2, ("replay", name, "--input", str(empty)), "gives no verdict")
    write_untrained_bundle(stack, seed=3)
    shutil.rmtree(stack.folder / "bundles" / "orders" / told[name]["model"]["digest"])
    assert fails(stack, 1, ("replay", name), "which judged", "is no longer in", "--bundle serving")
    other = replayed(stack, name, "--bundle", "serving")
    assert other["same_score"] is False
    assert "judged it then" in other["why_not"][0]


def test_what_warmed_up_cannot_be_judged_again(stack: Stack) -> None:
    """What was learned online is gone; a bundle that serves now can judge it."""
    (stack.folder / "bundles" / "orders" / "serving").unlink()
    stack.configure(stream={"promise": {"false_alarm_rate": 0.5}})
    stack.score(as_records(shop_events(1, 150)))
    name = next(one["id"] for one in stack.read_json("anomalies") if one["status"] == "warming_up")
    assert fails(stack, 2, ("replay", name), "while warming up", "--bundle serving")
    write_untrained_bundle(stack)
    assert replayed(stack, name, "--bundle", "serving")["same_score"] in {True, False}


def test_records_gone_by_retention(stack: Stack) -> None:
    """It says from where on the topic still has records, and that a file would do."""
    from confluent_kafka import TopicPartition
    from confluent_kafka.admin import AdminClient

    stack.score(as_records(shop_events(1, 20)))
    told = by_id(stack.read_json("anomalies"))
    name = min(told, key=lambda i: int(i.split("/")[3]))
    partition, offset = AnomalyId.parse(name).place.partition, AnomalyId.parse(name).offset
    admin = AdminClient({"bootstrap.servers": stack.address})
    (future,) = admin.delete_records([TopicPartition(stack.source, partition, offset + 1)]).values()
    future.result(PATIENCE_S)
    assert fails(stack, 1, ("replay", name), "is gone: the topic's retention has removed all before", "--input")
    with pytest.raises(UsageError):
        replay_anomaly(load_settings(stack.config_path), "x", back=1, source=None, bundle=None, as_json=True)
