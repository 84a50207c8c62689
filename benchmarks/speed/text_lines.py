"""Lines of text to fields, format by format: lines a second on one core, without Kafka and without columns.

Each format's lines are made from one seed and differ in every part that differs in life. `python -m
benchmarks.speed.text_lines` runs this alone.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from statistics import median
from typing import Any

from rich.console import Console

from features.text_lines import LineReader

_SEED = 5
_STACK = "".join(f"\n\tat dev.shop.cart.Item.step{i}(Item.java:{i * 7})" for i in range(12))


def run(lines: int, repeats: int, screen: Console) -> dict[str, Any]:
    """Read so many lines of each format, `repeats` times; medians."""
    found: dict[str, Any] = {"benchmark": "text_lines", "lines": lines}
    for name, (make, pattern) in _FORMATS.items():
        draw = random.Random(_SEED)
        made = [make(draw).encode() for _ in range(lines)]
        read = LineReader(pattern).read
        rates = []
        for _ in range(repeats):
            began = time.process_time()
            for line in made:
                read(line)
            rates.append(lines / (time.process_time() - began))
        found[name] = median(rates)
        size = sum(map(len, made)) / lines
        screen.print(f"  {name:20} {found[name]:10,.0f} lines/s  {size:4.0f} bytes a line")
    return found


def _clock(draw: random.Random) -> str:
    return f"{draw.randrange(24):02d}:{draw.randrange(60):02d}:{draw.randrange(60):02d}"


def _day(draw: random.Random) -> str:
    return f"{draw.randrange(1, 29):02d}"


def _said(draw: random.Random) -> str:
    item, cart = draw.randrange(10**6), draw.randrange(10**9)
    return draw.choice((
        f"item {item} was put into cart {cart:x} of 10.0.{item % 256}.{cart % 256}",
        f"payment of cart {cart:x} took {item % 977} ms and {item % 7} tries, which is more than was planned for it",
        f"closed connection to /10.1.{item % 256}.{cart % 256}:{cart % 60_000}",
    ))  # fmt: skip


def _level(draw: random.Random) -> str:
    return draw.choice(("INFO", "INFO", "INFO", "DEBUG", "WARN", "ERROR"))


def _access(draw: random.Random) -> str:
    return (
        f"10.2.{draw.randrange(256)}.{draw.randrange(256)} - - [{_day(draw)}/Mar/2026:{_clock(draw)} +0100] "
        f'"GET /items/{draw.randrange(10**6)}?page={draw.randrange(9)} HTTP/1.1" 200 {draw.randrange(10**5)}'
    )


def _combined(draw: random.Random) -> str:
    return f'{_access(draw)} "https://shop.example/cart/{draw.randrange(99)}" "Mozilla/5.0 (X11; Linux) Browser/9.1"'


def _old_syslog(draw: random.Random) -> str:
    return f"<38>Mar {_day(draw)} {_clock(draw)} web-{draw.randrange(9)} shop[{draw.randrange(9999)}]: {_said(draw)}"


def _new_syslog(draw: random.Random) -> str:
    return (
        f"<165>1 2026-03-{_day(draw)}T{_clock(draw)}.123Z web-{draw.randrange(9)} shop {draw.randrange(9999)} ID7 "
        f'[cart@32473 item="{draw.randrange(999)}" kind="book"] {_said(draw)}'
    )


def _logfmt(draw: random.Random) -> str:
    return (
        f'ts=2026-03-{_day(draw)}T{_clock(draw)}Z level={_level(draw).lower()} msg="{_said(draw)}" '
        f"trace={draw.randrange(2**60):x} status=200 took={draw.randrange(999)}ms"
    )


def _json(draw: random.Random) -> str:
    return (
        f'{{"timestamp":"2026-03-{_day(draw)}T{_clock(draw)}Z","severity":"{_level(draw)}","msg":"{_said(draw)}",'
        f'"trace":"{draw.randrange(2**60):x}","http":{{"status":200,"took":{draw.randrange(999)}}}}}'
    )


def _klog(draw: random.Random) -> str:
    return f"I03{_day(draw)} {_clock(draw)}.123456    4711 cart.go:{draw.randrange(1, 999)}] {_said(draw)}"


def _log4j(draw: random.Random) -> str:
    return (
        f"2026-03-{_day(draw)} {_clock(draw)},123 {_level(draw)} [worker-{draw.randrange(9)}] dev.shop.Cart: "
        f"{_said(draw)}"
    )


def _python(draw: random.Random) -> str:
    return f"2026-03-{_day(draw)} {_clock(draw)},123 - shop.cart - {_level(draw)} - {_said(draw)}"


def _spring(draw: random.Random) -> str:
    return (
        f"2026-03-{_day(draw)}T{_clock(draw)}.123+01:00  {_level(draw)} 4711 --- [  nio-8080-{draw.randrange(9)}] "
        f"d.s.c.CartService   : {_said(draw)}"
    )


_ITEMS = r"(?P<time>\S+ \S+) (?P<level>[A-Z]+) \[(?P<thread>[^\]]*)\] (?P<logger>\S+): (?P<message>.*)"
_FORMATS: dict[str, tuple[Callable[[random.Random], str], str | None]] = {
    "common": (_access, None),
    "combined": (_combined, None),
    "apache error": (
        lambda d: f"[Wed Mar {_day(d)} {_clock(d)} 2026] [error] [client 10.2.0.{d.randrange(256)}] {_said(d)}", None
    ),
    "nginx error": (lambda d: f"2026/03/{_day(d)} {_clock(d)} [error] 17#2: *{d.randrange(999)} {_said(d)}", None),
    "rfc 3164": (_old_syslog, None),
    "rfc 5424": (_new_syslog, None),
    "logfmt": (_logfmt, None),
    "json": (_json, None),
    "klog": (_klog, None),
    "log4j": (_log4j, None),
    "python": (_python, None),
    "spring": (_spring, None),
    "stack trace": (lambda d: _log4j(d) + _STACK, None),
    "with a source": (lambda d: f"web-{d.randrange(9)} | {_log4j(d)}", None),
    "no format": (_said, None),
    "colours": (lambda d: f"\x1b[32m{_level(d)}\x1b[0m: {_said(d)}", None),
    "pattern": (_log4j, _ITEMS),
}  # fmt: skip


if __name__ == "__main__":
    run(50_000, 3, Console(highlight=False))
