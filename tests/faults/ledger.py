"""The account of every invocation: a file that is only ever appended to, one line an event, written by clients, by the callbacks'
handlers and by whoever reads the dead letters. A line is one `write`, so it is whole even if its writer is killed."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

KINDS = ACCEPTED, OK, ERROR, DEAD, EFFECT, GARBAGE = "accepted", "ok", "error", "dead", "effect", "garbage"
GARBAGE_MARK = b"garbage-"
VARIABLE = "FAULTS_LEDGER"
# What an earlier scenario left behind must not be taken for this one's.
RUN = "FAULTS_RUN"


def cid_of(number: int, run: str | None = None) -> str:
    return f"{run or os.environ[RUN]}-{number}"


def number_of(cid: str, run: str | None = None) -> int | None:
    """The number that a CID is for; None if it is not one of this run's."""
    prefix, _, number = cid.rpartition("-")
    return int(number) if prefix == (run or os.environ[RUN]) else None


class Ledger:
    def __init__(self, path: Path | str) -> None:
        self._path = Path(path)
        self._file = os.open(self._path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o600)

    @classmethod
    def of_environment(cls) -> Ledger:
        return cls(os.environ[VARIABLE])

    def note(self, kind: str, number: int | None) -> None:
        if number is not None:
            os.write(self._file, f"{kind} {number}\n".encode())

    def note_garbage(self, body: bytes) -> None:
        """Note what body this is, if it is one of the malformed messages'."""
        if body.startswith(GARBAGE_MARK):
            self.note(GARBAGE, int(body.removeprefix(GARBAGE_MARK).partition(b" ")[0]))

    def account(self) -> Account:
        events: dict[str, Counter[int]] = {kind: Counter() for kind in KINDS}
        for line in self._path.read_text().splitlines():
            kind, number = line.split()
            events[kind][int(number)] += 1
        return Account(*(events[kind] for kind in KINDS))

    def close(self) -> None:
        os.close(self._file)


@dataclass
class Account:
    """How often each number was accepted, and came to a callback, to an error callback, to the dead letters; and which garbage was seen again."""

    accepted: Counter[int]
    ok: Counter[int]
    error: Counter[int]
    dead: Counter[int]
    effects: Counter[int]
    garbage: Counter[int]

    @property
    def lost(self) -> set[int]:
        """Accepted, and without any outcome."""
        return set(self.accepted) - set(self.ok) - set(self.error) - set(self.dead)

    @property
    def repeated(self) -> int:
        """Outcomes that a callback heard of more than once. A client that had to send again has caused some of them."""
        return sum(count - 1 for count in (*self.ok.values(), *self.error.values()))
