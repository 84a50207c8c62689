"""How many lines and values a core masks in a second: made-up log lines of about 100 characters, and real ones.

What is found costs more than the looking, so lines that hold nothing, two IP addresses, or one thing of many kinds are
timed apart.
"""

from __future__ import annotations

import gzip
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console

from features.masking import make_masker, parse_rules
from features.redact import redact

_DATA = Path(__file__).parents[3] / "shared" / "data"
_GOAL = 200_000.0  # lines a second that hold nothing
_PLAIN = (
    "2026-03-{d:02} 11:{d:02}:07,{n:03} INFO [worker-{d}] org.example.shop.Cart: c-{n:06} took {n} ms for {d} items",
    "2026-03-{d:02}T11:{d:02}:07.{n:03}Z level=warn service=billing trace=5f{n:06}a9c1 msg=slow took={n}ms of {d}00ms",
    "{d:02}:{d:02}:07 DEBUG block blk_-160{n:06}9687919862906 of task_2026_{n:04}_m_{d:06} moved to r{d}/node{d}",
)
_FOUND = (
    "user ann{n}@example.org", "card 4111 1111 1111 1111", "IBAN DE89 3704 0044 0532 0130 00", "call +49 30 12{n:06}",
    "password=hunter{n}", "Authorization: Bearer abc{n}", "https://ann:pw{n}@example.org/x", "from 2001:db8::{d}",
)  # fmt: skip


def run(lines: int, repeats: int, screen: Console) -> dict[str, Any]:
    """Median of `repeats` passes over each kind of line; lines (or values) a second of processor time."""
    found: dict[str, Any] = {"benchmark": "masking", "lines": lines, "goal": _GOAL}
    texts = _made_up(lines) | _real(lines)
    for kind, of_kind in texts.items():
        found[f"{kind}_per_s"] = _rate(redact, of_kind, repeats)
        found[f"{kind}_characters"] = sum(map(len, of_kind)) / len(of_kind)
        found[f"{kind}_changed"] = sum(redact(text) != text for text in of_kind) / len(of_kind)
    masker = make_masker(parse_rules({"user": "hash"}), b"a key for benchmarks only")
    hashed = masker.of("user")
    assert hashed is not None
    found["hash_per_s"] = _rate(hashed, [f"user-{i}" for i in range(lines)], repeats)
    shown = "  ".join(f"{k.removesuffix('_per_s')} {v:,.0f}/s" for k, v in found.items() if k.endswith("_per_s"))
    screen.print(f"  {shown}")
    return found


def _rate(mask: Callable[[str], object], texts: Sequence[str], repeats: int) -> float:
    took = []
    for _ in range(repeats):
        began = time.process_time()
        for text in texts:
            mask(text)
        took.append(time.process_time() - began)
    return len(texts) / median(took)


def _made_up(lines: int) -> dict[str, list[str]]:
    rng = random.Random(7)
    plain = [_PLAIN[i % len(_PLAIN)].format(d=rng.randrange(10, 28), n=rng.randrange(1000)) for i in range(lines)]
    address = "{} src: /10.250.{}.114:43996"
    numbers = [rng.randrange(256) for _ in range(lines)]
    return {
        "plain": plain,
        "two_addresses": [
            f"{address.format(t[:40], n)} dest: /10.250.{n}.7:50010" for t, n in zip(plain, numbers, strict=True)
        ],
        "found": [
            f"{t[:70]} {_FOUND[i % len(_FOUND)].format(d=n, n=n)}"
            for i, (t, n) in enumerate(zip(plain, numbers, strict=True))
        ],
    }


def _real(lines: int) -> dict[str, list[str]]:
    """Lines of seven systems, if the labelled data is here."""
    paths = sorted((_DATA / "loghub2k").glob("*_2k.log.gz"))
    texts = [
        text for path in paths for text in gzip.decompress(path.read_bytes()).decode("utf-8", "replace").splitlines()
    ]
    nothing = [text for text in texts if redact(text) == text]
    return {"real": texts[:lines], "real_plain": nothing[:lines]} if texts else {}
