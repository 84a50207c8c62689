"""Events that were read piece by piece are those that were read at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from features.decode import Decoder
from features.events import Events, Record


@dataclass(frozen=True)
class Given:
    """A record of a topic."""

    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None


VALUES = st.sampled_from([
    b'{"s":"a","t":1000,"x":"view","n":1.5,"m":"one","id":"i"}', b'{"s":"b","t":2000,"x":null,"n":null,"m":"two"}',
    b'{"s":"c","t":3000,"x":"pay"}', b'{"s":"a","t":4000,"x":"end","n":2}', b'{"t":1}', b"{", b'{"s":"a","x":[]}', None,
])  # fmt: skip
DECODER = Decoder("s", "t", ["x"], {"x": "end"}, "m", event_id="id", numbers=["n"])


@given(st.lists(VALUES, min_size=1, max_size=30), st.integers(1, 9))
def test_pieces_together_are_the_whole(values: list[bytes | None], size: int) -> None:
    """Columns, sessions, what was set aside and all counts agree, whatever the pieces."""
    records: list[Record] = [Given(2 * i, 5, None, value) for i, value in enumerate(values)]
    whole = DECODER.decode(records, check_key=False)
    pieces = [DECODER.decode(records[low : low + size], check_key=False) for low in range(0, len(records), size)]
    together = Events.concatenate(pieces)
    assert together.given == whole.given == len(values)
    for field in fields(Events):
        one, other = getattr(whole, field.name), getattr(together, field.name)
        if field.name == "rejects":
            assert [(r.index, r.offset, str(r.error)) for r in one] == [
                (r.index, r.offset, str(r.error)) for r in other
            ]
        elif isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
            assert one.dtype == other.dtype
        else:
            assert one == other, field.name
