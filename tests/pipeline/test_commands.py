"""Commands on files: what they print, and one sentence with an exit code for each thing that can be wrong."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import sysconfig
import venv
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.cli import main
from tests.kafka import COMMAND, Stack, shop_events, write_untrained_bundle

NO_BROKER = "127.0.0.1:1"  # nobody listens there
ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str

    def failed(self, code: int, *parts: str) -> bool:
        """One sentence with these parts in it on stderr, and this exit code."""
        sentence = self.err.splitlines()[-1]
        missing = [part for part in parts if part not in sentence]
        assert not missing, f"{missing} not in {sentence!r}"
        return self.code == code and sentence.startswith("offbeat: ") and "Traceback" not in self.err


Offbeat = Callable[..., Done]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """A config, a bundle and a folder, without a broker; the folder is the current one."""
    stack = Stack(NO_BROKER, tmp_path, name="t")
    stack.configure()
    write_untrained_bundle(stack)
    monkeypatch.chdir(tmp_path)
    return stack


@pytest.fixture
def offbeat(files: Stack, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Offbeat:
    """Run a command in this process, as the console script does; an unexpected exception fails the test."""

    def run(*arguments: str) -> Done:
        monkeypatch.setattr(sys, "argv", ["offbeat", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        out, err = capfd.readouterr()
        return Done(0 if end.value.code is None else int(end.value.code), out, err)

    return run


def write_events(path: Path, sessions: int = 30, seed: int = 1) -> int:
    events = list(shop_events(seed, sessions))
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return len(events)


def read_verdicts(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def change(files: Stack, key: str, value: Any) -> None:
    """Set a dotted key of the config, with * for the stream's name."""
    config = yaml.safe_load(files.config_path.read_text())
    *parents, leaf = key.replace("*", "orders").split(".")
    section = config
    for parent in parents:
        section = section.setdefault(parent, {})
    section[leaf] = value
    files.config_path.write_text(yaml.safe_dump(config))


# --- the config ------------------------------------------------------------------------------------------------------


def test_version(offbeat: Offbeat) -> None:
    """`offbeat --version` names the program and its version."""
    done = offbeat("--version")
    assert done.code == 0
    assert done.out == "offbeat 0.1.0\n"


def test_config_show_round_trips(offbeat: Offbeat, files: Stack) -> None:
    """What `config show` prints is a config that means the same, as YAML and as JSON."""
    shown = offbeat("config", "show").out
    assert json.loads(offbeat("config", "show", "--json").out) == yaml.safe_load(shown)
    files.config_path.write_text(shown)
    assert offbeat("config", "show").out == shown


def test_config_check_names_the_streams(offbeat: Offbeat) -> None:
    """A right config is called right, and its streams are listed."""
    assert offbeat("config", "check").out == "offbeat.yaml is right: 1 stream(s), orders\n"


def test_config_schema_is_a_schema(offbeat: Offbeat) -> None:
    """The schema names the config's keys and forbids others."""
    schema = json.loads(offbeat("config", "schema").out)
    assert {"broker", "streams"} <= schema["properties"].keys()
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("brokr", "x:1", "brokr is no setting; did you mean broker?"),
        ("streams.*.tokns", ["a"], "streams.orders.tokns is no setting; did you mean tokens?"),
        ("streams.*.session.gab", "5s", "streams.orders.session.gab is no setting; did you mean gap?"),
        ("http.pourt", 1, "http.pourt is no setting; did you mean port?"),
        ("http.xyzzy", 1, "http.xyzzy is no setting; known here: host, port"),
        ("http.port", 70_000, "http.port is 70000; expected less than or equal to 65535"),
        ("http", None, "http is empty; expected keys and values"),
        ("state.hot_sessions", "many", "state.hot_sessions is 'many'; expected a whole number"),
        ("checkpoint_interval", "soon", "checkpoint_interval is 'soon'; a duration such as 250ms, 30s"),
        ("topics.create", "perhaps", "topics.create is 'perhaps'; expected true or false"),
        ("app", "a b", "app is 'a b'; expected text that matches"),
        ("streams.*.model.core", "gruu", "streams.orders.model.core is 'gruu'; expected 'gru'"),
        ("streams.*.tokens", [], "tokens is empty; a stream of events needs at least one field to learn"),
        ("streams.*.tokens", ["a", "a"], "each field may stand in tokens once"),
        ("streams.*.tokens", ["a.b", 'a["b"]'], "each field may stand in tokens once"),
        ("streams.*.tokens", ["user", "user.id"], "the field user is used as a value and, in another place, as an"),
        ("streams.*.time", "a..b", "'a..b' is no field"),
        (
            "streams.*.mask",
            {"sesion": "hash"},
            "mask.sesion masks nothing: what is kept of a record is session, action",
        ),
        ("streams.*.mask", {"@key": "drop"}, "mask.@key masks nothing"),
        ("streams.*.mask", {"ts": "drop"}, "masks nothing"),
        ("streams.*.mask", {"session": "drop"}, "mask.session drops the session; write hash"),
        ("streams.*.mask", {"action": "hash"}, "mask.action is hash, which needs a secret of at least 16 bytes"),
        ("streams.*.mask", {"action": "shred"}, "allowed is drop, hash, redact or {truncate: N}"),
        ("streams.*.mask", {"action": "drop", '["action"]': "redact"}, "mask has two rules for action"),
        ("mask_secret", 12345678901234567890, "mask_secret is not right; expected text"),
        ("streams.*.kind", "logs", "`message` names the text of log lines"),
        ("streams.*.message", "said", "`message` names the text of log lines"),
        ("streams.*.pattern", "(?P<a>x)", "`pattern` reads lines of text: write it with format: text"),
        ("streams.*.session.end_when", {"x": [1]}, "end_when.x is [1]; expected text, a number, or true or false"),
        ("streams.*.topic", "t.dead-letters", "stream orders reads t.dead-letters, which is a topic of Offbeat's own"),
        ("streams.*.topic", "t.drift", "stream orders reads t.drift, which is a topic of Offbeat's own"),
        ("streams.*.topic", "t.controls", "stream orders reads t.controls, which is a topic of Offbeat's own"),
        ("streams", {}, "streams is {}; expected at least 1"),
        ("streams", {"Ä": {}}, "streams.Ä.topic is missing"),
    ],
)
def test_a_wrong_key_or_value_is_named(key: str, value: Any, sentence: str, offbeat: Offbeat, files: Stack) -> None:
    """A wrong setting is named with its value and what was expected; the exit code is 2."""
    change(files, key, value)
    assert offbeat("config", "check").failed(2, "offbeat.yaml", sentence)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"a: [1", "offbeat.yaml is no YAML: "),
        (b"- a\n- b\n", "must hold keys and values, such as `broker: localhost:9092`"),
        (b"", "must hold keys and values"),
        (b"\xff\xfe\x00", "cannot be read"),
    ],
)
def test_a_file_that_is_no_config(content: bytes, sentence: str, offbeat: Offbeat, files: Stack) -> None:
    """Anything but a YAML mapping is refused with a sentence."""
    files.config_path.write_bytes(content)
    assert offbeat("config", "check").failed(2, sentence)


def test_a_missing_config(offbeat: Offbeat) -> None:
    """A config that is not there is named, with what to do; a folder is none either."""
    assert offbeat("config", "check", "-c", "nope.yaml").failed(2, "there is no config file nope.yaml; write one", "-c")
    assert offbeat("config", "check", "-c", ".").failed(2, "the config file . cannot be read")


def test_two_streams_on_one_topic(offbeat: Offbeat, files: Stack) -> None:
    """A topic belongs to one stream of an app."""
    config = yaml.safe_load(files.config_path.read_text())
    config["streams"]["twin"] = config["streams"]["orders"]
    files.config_path.write_text(yaml.safe_dump(config))
    assert offbeat("config", "check").failed(2, "streams orders and twin read the same topic", "another app")


def test_environment_variables_win(offbeat: Offbeat, monkeypatch: pytest.MonkeyPatch) -> None:
    """OFFBEAT_* variables override the file, sections by two underscores; text stays text whatever it looks like."""
    for name, value in {
        "OFFBEAT_BROKER": "kafka:1", "OFFBEAT_STATE__HOT_SESSIONS": "123", "OFFBEAT_INSTANCE": "007",
        "OFFBEAT_TOPICS__CREATE": "false", "OFFBEAT_CHECKPOINT_INTERVAL": "1s", "OFFBEAT_MODELS_DIR": "",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    shown = json.loads(offbeat("config", "show", "--json").out)
    assert (shown["broker"]["servers"], shown["state"]["hot_sessions"]) == ("kafka:1", 123)
    assert shown["instance"] == "007"
    assert (shown["topics"]["create"], shown["checkpoint_interval"]) == (False, "1s")
    assert shown["models_dir"] is None


@pytest.mark.parametrize(
    ("variable", "value", "sentence"),
    [
        ("OFFBEAT_BROKR", "x", "OFFBEAT_BROKR names no setting; did you mean OFFBEAT_BROKER?"),
        ("OFFBEAT_STATE", "{}", "OFFBEAT_STATE names no setting; "),
        ("OFFBEAT_STREAMS__ORDERS__TOPIC", "x", "OFFBEAT_STREAMS__ORDERS__TOPIC names no setting"),
        ("OFFBEAT_HTTP__PORT__X", "1", "OFFBEAT_HTTP__PORT__X names no setting; did you mean OFFBEAT_HTTP__PORT?"),
        ("OFFBEAT_HTTP__PORT", "99999", "http.port is 99999; expected less than or equal to 65535"),
        ("OFFBEAT_HTTP__PORT", "[", "OFFBEAT_HTTP__PORT is '[', which is no YAML value"),
        ("OFFBEAT_DEVICE", "gpu", "device is 'gpu'; expected 'auto', 'cpu' or 'cuda'"),
    ],
)
def test_a_wrong_environment_variable(
    variable: str, value: str, sentence: str, offbeat: Offbeat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An OFFBEAT_ variable that sets nothing, or nothing allowed, is refused by name."""
    monkeypatch.setenv(variable, value)
    assert offbeat("config", "check").failed(2, sentence)


def test_a_section_that_is_empty_can_come_from_the_environment(
    offbeat: Offbeat, files: Stack, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A variable fills a section that the file leaves empty."""
    change(files, "http", None)
    monkeypatch.setenv("OFFBEAT_HTTP__PORT", "77")
    assert json.loads(offbeat("config", "show", "--json").out)["http"]["port"] == 77


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("nonsense",), "No such command 'nonsense'; see `offbeat --help`"),
        (("train",), "Missing option '--stream' / '-s'; see `offbeat train --help`"),
        (("train", "-s", "orders"), "say where to learn from"),
        (("train", "-s", "orders", "--input", "f", "--from-topic"), "say where to learn from"),
        (("train", "-s", "orders", "--input", "f", "--since", "1h"), "say where to learn from"),
        (("train", "-s", "orders", "--input", "nope.jsonl"), "nope.jsonl cannot be read: No such file or directory"),
        (("train", "-s", "nope", "--input", "f"), "the config has no stream 'nope'; it has: orders"),
        (("score", "-s", "nope", "--input", "f", "--output", "g"), "the config has no stream 'nope'"),
        (("score", "-s", "orders", "--input", "nope", "--output", "g"), "nope cannot be read: No such file"),
        (("produce", "f", "-s", "nope"), "the config has no stream 'nope'"),
        (("produce", "f", "-s", "orders", "--rate", "0"), "--rate"),
        (
            ("tail", "nonsense"),
            "'nonsense' is no output topic; there are anomalies, rescores, decisions, dead-letters, late",
        ),
        (("tail", "--limit", "0"), "--limit"),
        (("sessions", "show", "a", "-s", "nope"), "the config has no stream 'nope'; it has: orders"),
        (("sessions", "show", "", "-s", "orders"), "the session's name is empty, so no session can have it"),
        (("sessions", "show", "\udcff", "-s", "orders"), "the session's name is no UTF-8 text, so no session can"),
        (("sessions", "delete", "a", "-s", "nope", "--yes"), "the config has no stream 'nope'; it has: orders"),
        (("sessions", "delete", "", "-s", "orders", "--yes"), "the session's name is empty, so no session can have it"),
        (("sessions", "delete", "a", "-s", "orders", "--wait", "-1"), "--wait"),
        (("topics", "--create", "--delete"), "say either --create or --delete"),
        (("worker", "-c", "nope.yaml"), "there is no config file nope.yaml"),
    ],
)
def test_wrong_use(arguments: tuple[str, ...], sentence: str, offbeat: Offbeat) -> None:
    """A command that cannot be meant ends with one sentence and exit code 2, before anything is done."""
    assert offbeat(*arguments).failed(2, sentence)


# --- train -----------------------------------------------------------------------------------------------------------


def test_train_with_too_few_sessions(offbeat: Offbeat, files: Stack) -> None:
    """Too little history is refused with the number needed."""
    write_events(files.folder / "few.jsonl", 20)
    done = offbeat("train", "-s", "orders", "--input", "few.jsonl")
    assert done.failed(1, "sessions; at least 100 are needed", "session.gap")


def test_train_on_nothing(offbeat: Offbeat, files: Stack) -> None:
    """An empty file is refused by a sentence of its own."""
    (files.folder / "empty.jsonl").write_bytes(b"\n\n")
    assert offbeat("train", "-s", "orders", "--input", "empty.jsonl").failed(
        1, "the history is empty, for there is no record in it"
    )


def test_train_on_bad_lines_only(offbeat: Offbeat, files: Stack) -> None:
    """What was left out is counted by reason before the sentence says that too little remains."""
    lines = ("no json", "[1]", '{"action": "view", "status": "ok", "ts": 1}', '{"session": "a", "action": 1.5}')
    (files.folder / "bad.jsonl").write_text("\n".join(lines) + "\n")
    done = offbeat("train", "-s", "orders", "--input", "bad.jsonl")
    assert done.failed(1, "none of its 4 records could be read")
    for left_out in ("1 records: not_json", "2 records: wrong_type", "1 records: missing_session"):
        assert f"left out {left_out}" in done.err


@pytest.mark.parametrize("damage", ["cut", "flipped", "plain"])
def test_a_damaged_gzip_file(damage: str, offbeat: Offbeat, files: Stack) -> None:
    """A .gz that is cut short, damaged or no gzip at all is named, for train and for score."""
    data = bytearray(gzip.compress("".join(json.dumps(e) for e in shop_events(1, 100)).encode()))
    if damage == "flipped":
        data[30] ^= 0xFF
    path = files.folder / "h.jsonl.gz"
    path.write_bytes(data[:-50] if damage == "cut" else b'{"session": "a"}\n' if damage == "plain" else data)
    assert offbeat("train", "-s", "orders", "--input", str(path)).failed(2, "h.jsonl.gz cannot be read: ")
    assert offbeat("score", "-s", "orders", "--input", str(path), "--output", "o").failed(2, "h.jsonl.gz cannot be")


def test_a_models_folder_that_cannot_be(offbeat: Offbeat, files: Stack) -> None:
    """A models_dir that is a file is refused before minutes go into training, and by score."""
    write_events(files.folder / "e.jsonl")
    change(files, "models_dir", str(files.folder / "e.jsonl"))
    assert offbeat("train", "-s", "orders", "--input", "e.jsonl").failed(2, "cannot be made", "correct models_dir")
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "o")
    assert done.failed(1, "serving cannot be read (Not a directory); correct models_dir")


def test_train_then_score(offbeat: Offbeat, files: Stack) -> None:
    """A first bundle serves at once, a second only with --promote; the same seed and data give the same digest."""
    change(files, "models_dir", "m")
    write_events(files.folder / "history.jsonl", 160)
    train = ("train", "-s", "orders", "--input", "history.jsonl")
    first = json.loads(offbeat(*train, "--json").out)
    assert first["serving"] is True
    serving = files.folder / "m" / "orders" / "serving"
    assert serving.read_text().strip() == first["digest"]
    assert first["data"]["sessions"] >= 100

    again = json.loads(offbeat(*train, "--json").out)
    assert again["digest"] == first["digest"]
    done = offbeat(*train, "--seed", "1")
    assert "another one serves orders, `--promote` lets this one" in done.out
    assert serving.read_text().strip() == first["digest"]
    promoted = json.loads(offbeat(*train, "--seed", "1", "--promote", "--json").out)
    assert serving.read_text().strip() == promoted["digest"] != first["digest"]

    done = offbeat("score", "-s", "orders", "--input", "history.jsonl", "--output", "v.jsonl", "--json")
    verdicts = read_verdicts(files.folder / "v.jsonl")
    assert json.loads(done.out)["records"] == sum(v["type"] == "record" for v in verdicts)
    assert all(v["status"] == "ok" and v["score"] is not None for v in verdicts)


def test_a_training_can_be_bounded(offbeat: Offbeat, files: Stack) -> None:
    """`model.max_epochs` ends it, however much more would help; the manifest says after how many it was."""
    change(files, "models_dir", "m")
    change(files, "streams.*.model.max_epochs", 2)
    write_events(files.folder / "history.jsonl", 160)
    digest = json.loads(offbeat("train", "-s", "orders", "--input", "history.jsonl", "--json").out)["digest"]
    manifest = json.loads((files.folder / "m" / "orders" / digest / "manifest.json").read_text())
    assert manifest["content"]["training"]["epochs"] == 2


# --- score -----------------------------------------------------------------------------------------------------------


def test_score_without_a_bundle(offbeat: Offbeat, files: Stack) -> None:
    """No bundle yet: it works and warns; the first scores are null, never 0, and later ones say how sure they are."""
    (files.folder / "bundles" / "orders" / "serving").unlink()
    count = write_events(files.folder / "e.jsonl")
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl")
    assert done.code == 0
    wanted = "no bundle serves orders, so scores come from what is learned on the way, and the first are null"
    assert wanted in " ".join(done.err.split())
    verdicts = read_verdicts(files.folder / "v.jsonl")
    assert sum(v["type"] == "record" for v in verdicts) == count
    records = [v for v in verdicts if v["type"] == "record"]
    assert all(v["score"] is None and v["p_value"] is None and not v["anomaly"] for v in records[:256])
    assert all(v["score"] is not None and 0 <= v["confidence"] < 1 for v in records[256:])
    assert len(records) > 256
    assert {v["status"] for v in verdicts} == {"warming_up"}


@pytest.mark.parametrize("name", ["weights.safetensors", "vocabulary.json", "calibration.safetensors", "manifest.json"])
def test_a_flipped_byte_in_the_bundle(name: str, offbeat: Offbeat, files: Stack) -> None:
    """One flipped bit in any file of the bundle is found and named; nothing is scored."""
    write_events(files.folder / "e.jsonl")
    directory = files.folder / "bundles" / "orders"
    path = directory / (directory / "serving").read_text().strip() / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl")
    assert done.failed(1, "is damaged", "run `offbeat train`")
    assert not (files.folder / "v.jsonl").exists()


def test_a_bundle_for_other_tokens(offbeat: Offbeat, files: Stack) -> None:
    """A bundle trained for other fields is refused, with both lists."""
    write_events(files.folder / "e.jsonl")
    change(files, "streams.*.tokens", ["action", "country"])
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl")
    assert done.failed(1, "was trained with tokens ['action', 'status']", "'country'", "`offbeat train --promote`")


def test_a_bundle_that_is_none(offbeat: Offbeat, files: Stack) -> None:
    """--bundle with a folder that holds no bundle is refused."""
    write_events(files.folder / "e.jsonl")
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl", "--bundle", "nowhere")
    assert done.failed(1, "nowhere is no bundle: it has no manifest.json; run `offbeat train`")


def test_an_output_that_cannot_be_written(offbeat: Offbeat, files: Stack) -> None:
    """An output in a folder that is not there, or over the input itself, is refused and the input kept."""
    write_events(files.folder / "e.jsonl")
    before = (files.folder / "e.jsonl").read_bytes()
    score = ("score", "-s", "orders", "--input", "e.jsonl", "--output")
    assert offbeat(*score, "nowhere/v.jsonl").failed(2, "nowhere/v.jsonl cannot be written: No such file or directory")
    assert offbeat(*score, "./e.jsonl").failed(2, "--input and --output are the same file")
    assert (files.folder / "e.jsonl").read_bytes() == before


def test_lines_that_cannot_be_scored(offbeat: Offbeat, files: Stack) -> None:
    """A bad line has a verdict of its own with status dead_letter and the reason; the others are scored."""
    lines = [
        '{"session": "a", "action": "view", "ts": 1}', "not json", "[1]", '{"action": "view"}', "",
        '{"session": "a", "action": 7.5}', '{"session": "a", "ts": "yesterday"}', '{"session": "a", "ts": NaN}',
        '{"session": "a", "ts": 1e400}', '{"session": ' + "9" * 5000 + "}", "[" * 20_000, '{"session": "\\ud800"}',
        '{"session": "a", "action": "add", "ts": 2}',
    ]  # fmt: skip
    (files.folder / "e.jsonl").write_text("\n".join(lines))
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl")
    assert done.code == 0
    assert "12 records, " in done.out
    assert "10 records could not be scored" in done.out
    verdicts = [v for v in read_verdicts(files.folder / "v.jsonl") if v["type"] == "record"]
    assert [v["line"] for v in verdicts] == [1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13]
    assert [v.get("reason") for v in verdicts] == [
        None, "not_json", "wrong_type", "missing_session", "wrong_type", "bad_time", "not_json", "wrong_type",
        "wrong_type", "wrong_type", "not_json", None,
    ]  # fmt: skip
    bad = [v for v in verdicts if v["status"] == "dead_letter"]
    assert all(v["detail"] and v["score"] is None and v["anomaly"] is False for v in bad)


@pytest.mark.parametrize(
    "about", ['"_offset": "7"', '"_offset": 99999999999999999999', '"_offset": -1', '"_partition": 0.5', '"_key": 1']
)
def test_a_line_with_a_wrong_place(about: str, offbeat: Offbeat, files: Stack) -> None:
    """An envelope that cannot be is refused with its line: taken for absent, it would give verdicts wrong ids."""
    (files.folder / "e.jsonl").write_text('{"session": "a"}\n{"session": "a", ' + about + "}\n")
    done = offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl")
    assert done.failed(2, "line 2 of e.jsonl does not say where its record lay: Expected", about.split('"')[1])


def test_gzip_is_read_as_the_plain_file(offbeat: Offbeat, files: Stack) -> None:
    """A .gz gives the same verdicts as the file it was made of."""
    write_events(files.folder / "e.jsonl")
    (files.folder / "e.jsonl.gz").write_bytes(gzip.compress((files.folder / "e.jsonl").read_bytes()))
    offbeat("score", "-s", "orders", "--input", "e.jsonl", "--output", "v1")
    offbeat("score", "-s", "orders", "--input", "e.jsonl.gz", "--output", "v2")
    assert (files.folder / "v1").read_bytes() == (files.folder / "v2").read_bytes() != b""


# --- no broker -------------------------------------------------------------------------------------------------------


def test_every_command_says_that_no_broker_answers(files: Stack) -> None:
    """Commands that need Kafka end by themselves with one sentence and exit code 1 when nobody answers."""
    write_events(files.folder / "e.jsonl")
    commands = [
        ("worker",), ("produce", "e.jsonl", "-s", "orders"), ("tail",), ("topics",), ("topics", "--create"),
        ("train", "-s", "orders", "--from-topic"), ("sessions", "show", "a", "-s", "orders"),
        ("sessions", "delete", "a", "-s", "orders", "--yes"), ("sessions", "delete", "a", "-s", "orders", "--verify"),
    ]  # fmt: skip
    with ThreadPoolExecutor(len(commands)) as pool:
        for ended in pool.map(lambda command: files.run(*command, check=False), commands):
            done = Done(ended.returncode, ended.stdout, ended.stderr)
            assert done.failed(1, f"no Kafka broker answers at {NO_BROKER}", "start one with `offbeat broker`"), done


def test_delete_without_a_terminal(files: Stack) -> None:
    """A script that does not say --yes deletes nothing; the exit code is 2."""
    done = subprocess.run(
        [*COMMAND, "sessions", "delete", "a", "-s", "orders"], cwd=files.folder, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert Done(done.returncode, done.stdout, done.stderr).failed(
        2, "`offbeat sessions delete` asks before", "add --yes"
    )


# --- installed elsewhere ---------------------------------------------------------------------------------------------


def test_the_wheel_works_elsewhere(files: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    """The built wheel runs from a folder with a `models/` and a `pipeline/` of its own, and takes its own modules."""
    base = tmp_path_factory.mktemp("wheel")
    for package in ("models", "pipeline", "features", "detectors"):
        (files.folder / package).mkdir()
        (files.folder / package / "__init__.py").write_text("raise RuntimeError('the wrong package')")
    environment = {k: v for k, v in os.environ.items() if k not in {"PYTHONPATH", "PYTHONSAFEPATH"}}

    def run(*command: str | Path) -> str:
        done = subprocess.run(command, cwd=files.folder, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    run(sys.executable, "-P", "-m", "build", "--wheel", "--no-isolation", "--outdir", base / "dist", ROOT)
    (wheel,) = (base / "dist").glob("offbeat-*.whl")
    venv.EnvBuilder(with_pip=False, symlinks=True).create(base / "venv")
    python, offbeat = base / "venv" / "bin" / "python", base / "venv" / "bin" / "offbeat"
    # The dependencies come from here by a path file. Path files in *that* folder, such as the one of the editable
    # checkout, are not followed.
    site = base / "venv" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
    (site / "dependencies.pth").write_text(sysconfig.get_path("purelib"))
    run(sys.executable, "-P", "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-index", wheel)

    write_events(files.folder / "e.jsonl")
    assert run(offbeat, "--version") == "offbeat 0.1.0\n"
    assert "is right" in run(offbeat, "config", "check")
    assert " anomalies; " in run(offbeat, "score", "-s", "orders", "--input", "e.jsonl", "--output", "v.jsonl")
    assert all(v["status"] == "ok" for v in read_verdicts(files.folder / "v.jsonl"))
    assert run(python, "-P", "-c", "import pipeline; print(pipeline.__file__)").startswith(str(site))
