"""Before a bundle serves, on a real broker: the verdicts are those of a file, also after a kill; then it is over."""

from __future__ import annotations

from tests.kafka import Stack, as_records, by_id, shop_events, two_workers
from tests.pipeline.test_worker import decisions_of, explained, scored_by_file


def saved_online(stack: Stack) -> dict[tuple[int, bytes], bool]:
    """Keys of what was learned online in the changelog, by partition, and whether their last record is a row."""
    changelog = [m for m in stack.read(f"{stack.name}.orders.changelog") if (m.key() or b"").startswith(b"online/")]
    return {(m.partition(), m.key()): m.value() is not None for m in changelog}


def test_what_was_learned_survives_a_kill_and_ends_with_a_bundle(stack: Stack) -> None:
    """Two workers learn online, one is killed: every verdict is that of a file; with a bundle the rows go."""
    serving = stack.folder / "bundles" / "orders" / "serving"
    digest = serving.read_text()
    serving.unlink()
    records = as_records(shop_events(6, 2_000))
    third = len(records) // 3
    with two_workers(stack, records[:third]) as (one, two):
        stack.produce(records[third : 2 * third])
        one.kill()
        stack.produce(records[2 * third :])
        stack.wait_until_scored()
        assert two.stop() == 0

    decisions = by_id(stack.read_json("decisions"))
    expected = scored_by_file(stack)
    assert decisions == decisions_of(expected)
    anomalies = by_id(stack.read_json("anomalies"), ignore=("detected_ms",))
    assert explained(anomalies) == explained(expected)
    assert anomalies
    assert {a["status"] for a in anomalies.values()} == {"warming_up"}
    assert sum(d["confidence"] is not None for d in decisions.values()) > len(decisions) / 2
    rows = saved_online(stack)
    assert {p for p, _ in rows} == set(range(stack.partitions))
    assert all(rows.values())

    serving.write_text(digest)
    stack.score(as_records(shop_events(7, 200)))
    later = [d for d in stack.read_json("decisions") if d["id"] not in decisions]
    assert {d["status"] for d in later} == {"ok"}
    assert {d["confidence"] for d in later} == {None}
    assert not any(saved_online(stack).values())
