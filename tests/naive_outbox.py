"""The index of the outbox as one list, slow and obvious."""

from __future__ import annotations

from dataclasses import dataclass, field

from pipeline.alerts.index import FOREVER_MS, MOST_BYTES
from pipeline.alerts.rows import Open, Pending, Sealed, encode
from pipeline.alerts.told import MOST_CHANGES


@dataclass
class NaiveIndex:
    """Pending rows in their order, sealed messages with whether the topic has them, and open incidents."""

    pending: list[Pending] = field(default_factory=list)
    messages: dict[tuple[str, str], tuple[Sealed, bool]] = field(default_factory=dict)
    open: dict[tuple[str, str], Open] = field(default_factory=dict)
    busy: set[tuple[str, str]] = field(default_factory=set)

    def put(self, row: Pending) -> None:
        """Add a change."""
        self.pending = sorted([p for p in self.pending if p.key != row.key] + [row], key=lambda p: p.seq)

    def seal(self, row: Sealed) -> None:
        """A message has failed, or is about to leave; nobody has it any more."""
        self.messages[row.receiver, row.id] = (row, True)
        self.busy.discard((row.receiver, row.id))

    def delivered(self, row: Sealed) -> None:
        """It is over."""
        told = {change for _, change in row.changes}
        self.pending = [p for p in self.pending if p.receiver != row.receiver or p.change.id not in told]
        self.messages.pop((row.receiver, row.id), None)
        self.busy.discard((row.receiver, row.id))

    def restart(self) -> None:
        """What only memory had is gone."""
        self.messages = {key: found for key, found in self.messages.items() if found[1]}
        self.busy = set()

    def heads(self, receiver: str) -> list[Pending]:
        """Of each subject the oldest, where no message has it yet."""
        sealed = {c for m, _ in self.messages.values() if m.receiver == receiver for c in m.changes}
        seen, found = set(), []
        for p in self.pending:
            if p.receiver == receiver and p.change.subject not in seen:
                seen.add(p.change.subject)
                if (p.change.subject, p.change.id) not in sealed:
                    found.append(p)
        return found

    def due(self, receiver: str) -> list[tuple[int, int, str]]:
        """What could leave, by when it is due, then by age; of a fresh one the name is that of its head."""
        seqs = {p.key: p.seq for p in self.pending}
        found = [(p.ready_ms, p.seq, "fresh/" + p.change.id) for p in self.heads(receiver)]
        for key, (m, _) in self.messages.items():
            if key[0] == receiver and key not in self.busy:
                first = min(seqs["pending", receiver, subject, change] for subject, change in m.changes)
                found.append((m.due_ms, first, "tried/" + m.id))
        return sorted(found)

    def take(self, receiver: str, now_ms: int) -> Sealed | None:
        """What leaves now."""
        due = self.due(receiver)
        if not due or due[0][0] > now_ms:
            return None
        how, _, name = due[0][2].partition("/")
        if how == "tried":
            row = self.messages[receiver, name][0]
        else:
            row = self._sealed(receiver, name)
            self.messages[receiver, row.id] = (row, False)
        self.busy.add((receiver, row.id))
        return row

    def _sealed(self, receiver: str, name: str) -> Sealed:
        heads = self.heads(receiver)
        first = next(p for p in heads if p.change.id == name)
        told = [first] if first.group is None else self._together(first, heads)
        told.sort(key=lambda p: p.seq)
        identity = told[0].change.id + (f"+{len(told) - 1}" if len(told) > 1 else "")
        return Sealed(receiver, identity, tuple((p.change.subject, p.change.id) for p in told), 0, first.ready_ms)

    def _together(self, first: Pending, heads: list[Pending]) -> list[Pending]:
        told = [first]
        for head in [p for p in heads if p.group == first.group][:MOST_CHANGES]:
            of = [p for p in self.pending if p.receiver == head.receiver and p.change.subject == head.change.subject]
            for p in of:
                if p.group != first.group:
                    break
                if p in told:
                    continue
                if len(told) == MOST_CHANGES or sum(map(size, [*told, p])) > MOST_BYTES:
                    return told
                told.append(p)
        return told

    def next_ms(self, receiver: str) -> int:
        """When something is due."""
        repeats = [o.next_ms for (name, _), o in self.open.items() if name == receiver]
        return min([due[0] for due in self.due(receiver)[:1]] + repeats, default=FOREVER_MS)


def size(row: Pending) -> int:
    """Bytes of a row."""
    return len(encode(row)[1])
