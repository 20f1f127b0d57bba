"""What is kept of a run: entries, in the order in which they happened. A chunk of them is appended to the store at once.

    ["begin", t, service, message, first, chunk, signals]
                                               the request, as `archive` has it; the number of its first step; that of the chunk, which
                                               begins with this; the last signals before, by ID. The chunks before it are of no use any more
    ["ask", step, kind, what, digest, place]   the next step: what is shown of it, what tells it apart, file and line of the await
    ["got", t, step, outcome, value, true]     an answer: `ok`, `bytes`, `error` (a problem), `unroutable` (its target), `due` (a timer);
                                               the last only if no message has brought it: a function's result, say
    ["signal", t, name, outcome, value, id]    a message for whoever waits for that name
    ["left", t, step]                          the handler does not wait for it any more; only to be told, as it is found out again
    ["cancel", t, id]                          the run is to end, by a message of that ID
    ["failed", t, attempt, reason, problem, wait, step]
                                               an attempt ended, and why; the seconds until the next, null if there is none; the step
                                               whose failure it died of, if it asked for nothing more after that
    ["again", t, attempt, forgotten]           the next attempt begins; the answers to the forgotten steps are void
    ["repeat", t, reply_to]                    the request has come again, and wants the reply elsewhere
    ["end", t, state, outcome, body, content_type, headers]
                                               `done`, with the response, or `cancelled`

`t` is in seconds since 1970, with milliseconds. JSON, one array a chunk.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable
from typing import Any

Entry = list[Any]
BEGIN, ASK, GOT, SIGNAL, LEFT = "begin", "ask", "got", "signal", "left"
CANCEL, FAILED, AGAIN, REPEAT, END = "cancel", "failed", "again", "repeat", "end"
OK, BYTES, ERROR, UNROUTABLE, DUE = "ok", "bytes", "error", "unroutable", "due"
DONE, CANCELLED = "done", "cancelled"

_encode = json.JSONEncoder(separators=(",", ":"), check_circular=False).encode

MAX_STEPS = 100_000
MAX_BYTES = 64 * 1024 * 1024
SIGNALS_REMEMBERED = 100
"""So many signals are known again if they come twice, after the run has begun anew."""


def dumps(entries: list[Entry]) -> str:
    """A chunk."""
    return _encode(entries)


def loads(chunk: str) -> list[Entry]:
    """The entries of a chunk."""
    entries: list[Entry] = json.loads(chunk)
    return entries


def value(payload: Any) -> tuple[str, Any]:
    """An outcome and a value that stand for what `bodies.decode` gives: JSON's values, or bytes."""
    if isinstance(payload, bytes):
        return BYTES, base64.b64encode(payload).decode()
    return OK, payload


def payload(outcome: str, kept: Any) -> Any:
    """The payload that an outcome and a value stand for."""
    return base64.b64decode(kept) if outcome == BYTES else kept


RUNNING, FAILING, DIED = "running", "failing", "failed"
"""What a run is beside `done` and `cancelled`: an attempt failed and another will come; the last attempt failed."""
OVER = frozenset((DONE, CANCELLED, DIED))


class Journal:
    """The entries of one run, and what they say. Those of the last, open chunk are not in the store yet."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        """Since the run last began anew."""
        self.open: list[Entry] = []
        self.chunks = 0
        """How many are in the store."""
        self.size = 0
        """Characters of them."""
        self.asked = 0
        """How many steps it has asked for since it last began anew."""
        self.state: str | None = None
        """None for a run that there is not."""
        self.kept_state: str | None = None
        """The state that is in the store."""
        self.ended_in = 0
        """The chunk in which the run, or its last attempt that is over, ended."""
        self._asked_in: dict[int, list[int]] = {}
        self._chunk_of: dict[int | str, int] = {}
        self._without_message: set[int] = set()
        """The steps whose answers no message has brought."""

    @classmethod
    def of(cls, chunks: Iterable[str]) -> Journal:
        """The journal that is in a store."""
        journal = cls()
        for number, chunk in enumerate(chunks):
            entries = loads(chunk)
            if number == 0:
                journal.chunks = entries[0][5]
            for entry in entries:
                journal.add(entry)
            journal.close(len(chunk))
        return journal

    def add(self, entry: Entry) -> None:
        """Something has happened."""
        kind = entry[0]
        if kind == BEGIN:
            self.entries, self.asked, self.size, self.state = [], 0, 0, RUNNING
            began_in: int = entry[5]
            self._asked_in, self._chunk_of, self._without_message = {}, dict.fromkeys(entry[6], began_in), set()
        elif kind == ASK:
            self.asked += 1
            self._asked_in.setdefault(self.chunks, []).append(entry[1])
        elif kind == GOT:
            self._chunk_of[entry[2]] = self.chunks
            if len(entry) > 5:
                self._without_message.add(entry[2])
        elif kind == CANCEL:
            self._chunk_of[entry[2]] = self.chunks
        elif kind == SIGNAL:
            self._chunk_of[entry[5]] = self.chunks
        elif kind == FAILED:
            self.state, self.ended_in = DIED if entry[5] is None else FAILING, self.chunks
        elif kind == AGAIN:
            self.state = RUNNING
            for step in entry[3]:
                self._chunk_of.pop(step, None)
        elif kind == END:
            self.state, self.ended_in = entry[2], self.chunks
        self.entries.append(entry)
        self.open.append(entry)

    def close(self, size: int) -> None:
        """The open chunk, of so many characters, is in the store."""
        self.open = []
        self.chunks += 1
        self.size += size
        self.kept_state = self.state

    @property
    def begin(self) -> Entry:
        return self.entries[0]

    @property
    def began_in(self) -> int:
        """The chunk in which it last began anew."""
        began: int = self.begin[5]
        return began

    @property
    def last_signals(self) -> list[str]:
        """The last signals that have come, by ID."""
        return [one for one in self._chunk_of if isinstance(one, str) and one][-SIGNALS_REMEMBERED:]

    @property
    def end(self) -> Entry:
        """What ended the run, or its last attempt."""
        return next(entry for entry in reversed(self.entries) if entry[0] in (END, FAILED))

    @property
    def attempt(self) -> int:
        return next((entry[2] for entry in reversed(self.entries) if entry[0] == AGAIN), 1)

    @property
    def repeat(self) -> Entry | None:
        """The last time that the request has come again."""
        return next((entry for entry in reversed(self.entries) if entry[0] == REPEAT), None)

    def chunk_of(self, answered: int | str) -> int | None:
        """Which chunk has the answer to a step, or the signal or cancellation of that ID."""
        return self._chunk_of.get(answered)

    def asked_in(self, chunk: int) -> list[int]:
        """The steps that were asked for in a chunk."""
        return self._asked_in.get(chunk, [])

    def with_what_followed(self, chunk: int) -> list[int]:
        """The chunk, and those that came of it without another message."""
        chunks = [chunk]
        for one in chunks:
            answered = self._without_message.intersection(self.asked_in(one))
            chunks += {self._chunk_of[step] for step in answered if step in self._chunk_of}.difference(chunks)
        return chunks

    def last_answer(self) -> int | None:
        """The step whose answer was the last thing that happened; None if it was something else."""
        entry = next((one for one in reversed(self.entries) if one[0] in (ASK, GOT, SIGNAL, CANCEL)), None)
        return entry[2] if entry is not None and entry[0] == GOT else None

    @property
    def has_gone_on(self) -> bool:
        """Whether anything has come since the run last began anew."""
        return any(entry[0] in (GOT, SIGNAL) for entry in self.entries)
