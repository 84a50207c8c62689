"""`python -m tests.fuzz --examples 100000`: hostile inputs for all that reads foreign bytes, told while it goes on."""

from __future__ import annotations

import argparse
import sys
import time
import traceback

from tests.fuzz.targets import TARGETS, Target, fuzz


def main() -> int:
    """Fuzz each target; returns 1 where one broke."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--examples", type=int, default=100_000, help="for each target")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same inputs")
    parser.add_argument("--only", nargs="+", default=[], choices=[t.name for t in TARGETS], help="these targets")
    asked = parser.parse_args()
    print(f"seed {asked.seed}, {asked.examples:,} inputs for each", flush=True)
    held = [_run(t, asked.examples, asked.seed) for t in TARGETS if not asked.only or t.name in asked.only]
    return 0 if all(held) else 1


def _run(target: Target, examples: int, number: int) -> bool:
    began = time.monotonic()

    def told(done: int) -> None:
        if done % max(1, examples // 10) == 0:
            print(f"  {target.name}: {done:,} in {time.monotonic() - began:.0f} s", flush=True)

    try:
        done = fuzz(target, examples, number, told)
    except Exception:
        traceback.print_exc()
        print(f"{target.name}: broken", flush=True)
        return False
    print(f"{target.name}: {done:,} inputs held, {time.monotonic() - began:.0f} s", flush=True)
    return True


if __name__ == "__main__":
    sys.exit(main())
