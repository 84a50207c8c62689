"""Write history.jsonl and today.jsonl: a made-up shop's orders. In today's, one order is shipped that nobody paid."""

import json
from random import Random


def write(path: str, seed: int, sessions: int, start_ms: int, *, broken: bool) -> None:
    """Write the events of all sessions in time order; with `broken`, session-7 skips its payment."""
    draw, events = Random(seed), []  # noqa: S311 (orders are no secret)
    for number in range(sessions):
        steps = ["view"] * draw.randint(1, 3) + ["add"] * draw.randint(1, 2) + ["pay", "ship", "close"]
        if broken and number == 7:
            steps.remove("pay")
        now_ms = start_ms + number * 500
        for action in steps:
            now_ms += draw.randint(200, 2_000)
            events.append({"session_id": f"session-{number}", "action": action, "status": "ok", "ts": now_ms})
    with open(path, "w", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for event in sorted(events, key=lambda event: event["ts"]))


if __name__ == "__main__":
    write("history.jsonl", 1, 6_000, 1_767_225_600_000, broken=False)
    write("today.jsonl", 2, 500, 1_767_312_000_000, broken=True)
