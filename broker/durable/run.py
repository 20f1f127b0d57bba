"""One run of a durable handler: entries go in, what the handler asks comes out. The same entries, the same questions, every time."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from types import FrameType
from typing import Any, NamedTuple

from broker.durable import journal
from broker.durable.journal import AGAIN, ASK, CANCEL, DUE, ERROR, GOT, SIGNAL, UNROUTABLE, Entry
from broker.durable.loop import DurableLoop
from broker.errors import AckbackError, RemoteError, UnroutableError
from broker.protocol import problems

CALL, INVOKE, TIMER, WAIT, STEP = "call", "invoke", "sleep", "wait_for", "step"
ANSWERED = frozenset((CALL, TIMER, STEP))
"""The kinds of steps that have an answer of their own."""


class ChangedError(AckbackError):
    """A handler asks something else than the journal has: it is not the code, or not the input, that it was."""


class Question(NamedTuple):
    """A step: its number in the run, what is shown of it, what tells it apart from others, and the place of its await.

    `ask` is what has to be done for it, None where that is nothing.
    """

    number: int
    kind: str
    what: str
    digest: str
    place: str
    ask: Any

    @property
    def entry(self) -> Entry:
        return [ASK, self.number, self.kind, self.what, self.digest, self.place]


Start = Callable[["Run"], Coroutine[Any, Any, Any]]


class Run:
    """A handler and its loop. `start` makes the handler's coroutine; `first` is the number of its first step; `now` is in seconds since
    1970; `seed` is a number that other runs have not."""

    def __init__(self, start: Start, now: float, first: int = 0, seed: int = 0) -> None:
        self.loop = DurableLoop(now, self._ask_timer, seed)  # type: ignore[abstract]  # what is abstract is refused
        self.first = first
        self.questions: list[Question] = []
        self._known: list[Entry] = []
        self._waiting: dict[int, asyncio.Future[Any] | asyncio.TimerHandle] = {}
        self._numbers: dict[int, int] = {}
        """The steps of those, and of what waits for signals, by identity."""
        self._waiting_for_signals: dict[str, deque[tuple[int, asyncio.Future[Any]]]] = {}
        self._signals: dict[str, deque[tuple[str, Any]]] = {}
        self._answered: set[int] = set()
        self._changed: ChangedError | None = None
        self._raised: dict[BaseException, int] = {}
        self.is_replaying = False
        self._start = start
        self.task: asyncio.Task[Any]

    def begin(self) -> None:
        """Run the handler up to where it first waits."""
        outer = asyncio.events._get_running_loop()
        asyncio.events._set_running_loop(self.loop)
        try:
            self.task = self.loop.create_task(self._start(self))
        finally:
            asyncio.events._set_running_loop(outer)
        self.loop.run_until_all_waits()

    @property
    def is_done(self) -> bool:
        return self.task.done()

    @property
    def next_number(self) -> int:
        return self.first + len(self.questions)

    def is_waiting(self, number: int) -> bool:
        """Whether an answer to the step would be of use: it has none, and the handler has not given it up."""
        one = self._waiting.get(number)
        return one is not None and not (one.done() if isinstance(one, asyncio.Future) else one.cancelled())

    def question(self, number: int) -> Question | None:
        """The question of a step that has been asked for."""
        return self.questions[number - self.first] if self.first <= number < self.next_number else None

    def wants(self, question: Question) -> bool:
        """Whether what a question asks for has still to be done."""
        return question.kind == INVOKE or self.is_waiting(question.number)

    def takes(self, number: int) -> bool:
        """Whether the step has been asked, and has no answer yet."""
        return self.first <= number < self.next_number and number not in self._answered

    @property
    def waits_for(self) -> list[Question]:
        """The steps that the handler waits for."""
        signals = {
            number for waiting in self._waiting_for_signals.values() for number, one in waiting if not one.done()
        }
        return [one for one in self.questions if self.is_waiting(one.number) or one.number in signals]

    def left(self) -> list[int]:
        """The steps that the handler has given up since this was last asked."""
        left, self.loop.left = self.loop.left, []
        return [self._numbers[id(one)] for one in left if id(one) in self._numbers]

    def feed(self, entry: Entry) -> None:
        """Go on with what has happened."""
        kind, t = entry[0], entry[1]
        self.loop.now = max(self.loop.now, t)
        if kind == GOT:
            self._got(*entry[2:5])
        elif kind == SIGNAL:
            self._signalled(entry[2], entry[3], entry[4])
        elif kind == CANCEL:
            self.task.cancel()
        self.loop.run_until_all_waits()
        if self._changed is not None:
            raise self._changed

    def replay(self, entries: list[Entry]) -> None:
        """Begin, and go on with the entries of a journal, but for answers that a later attempt has forgotten.

        Raises:
            ChangedError: the handler asks something else than it did.
        """
        lenient_up_to = max((at for at, entry in enumerate(entries) if entry[0] == AGAIN), default=-1)
        self._known = [entry for entry in entries if entry[0] == ASK]
        void = _void(entries)
        self.is_replaying = True
        asked = 0
        self.begin()
        if self._changed is not None:
            raise self._changed
        for at, entry in enumerate(entries):
            if entry[0] == ASK:
                asked += 1
            elif entry[0] in (GOT, SIGNAL, CANCEL):
                if at > lenient_up_to:
                    self._compare(asked)
                if at not in void:
                    self.feed(entry)
        if len(self.questions) < len(self._known):
            raise self._missing(len(self.questions))
        self.is_replaying = False
        self.loop.left.clear()

    def _compare(self, asked: int) -> None:
        if len(self.questions) < asked:
            raise self._missing(len(self.questions))
        if len(self.questions) > asked:
            more = self.questions[asked]
            raise ChangedError(
                f"step {more.number + 1} is new: the handler asks for {_told(more.entry)} where it went on with what it had "
                f"({more.place})"
            )

    def _missing(self, number: int) -> ChangedError:
        return ChangedError(
            f"step {self.first + number + 1} was {_told(self._known[number])} ({self._known[number][5]}), and the handler does not "
            "ask for it any more"
        )

    def ask(self, kind: str, what: str, digest: str, ask: Any, place_in_source: str | None = None) -> Question:
        """The handler asks for something; `place_in_source` is where, if it is not where that is awaited."""
        self.loop._check()
        number = self.next_number
        question = Question(number, kind, what, digest, place_in_source or place(), ask)
        at = len(self.questions)
        self.questions.append(question)
        if at < len(self._known):
            known = self._known[at]
            if (kind, digest) != (known[2], known[4]) and self._changed is None:
                self._changed = ChangedError(
                    f"step {number + 1} was {_told(known)} ({known[5]}), and is {_told(question.entry)} now ({question.place})"
                )
        return question

    def answer(self, number: int) -> asyncio.Future[Any]:
        """A future for the answer to a step."""
        future = self._waiting[number] = self.loop.create_future()
        self._numbers[id(future)] = number
        return future

    def wait_for(self, name: str, place_in_source: str) -> asyncio.Future[Any]:
        """A future for the next signal of that name."""
        question = self.ask(WAIT, f'"{name}"', name, None, place_in_source)
        future = self.loop.create_future()
        if buffered := self._signals.get(name):
            future.set_result(journal.payload(*buffered.popleft()))
        else:
            self._waiting_for_signals.setdefault(name, deque()).append((question.number, future))
            self._numbers[id(future)] = question.number
        return future

    def abandon(self) -> None:
        """Let go of it."""
        self.loop.abandon()

    def _ask_timer(self, timer: asyncio.TimerHandle) -> None:
        seconds = round(timer.when() - self.loop.now, 3)
        question = self.ask(TIMER, f"{seconds:g} s", f"{seconds:g}", timer.when())
        self._waiting[question.number] = timer
        self._numbers[id(timer)] = question.number

    def _got(self, number: int, outcome: str, value: Any) -> None:
        self._answered.add(number)
        one = self._waiting.pop(number, None)
        self._numbers.pop(id(one), None)
        if isinstance(one, asyncio.TimerHandle):
            if not one.cancelled():
                self.loop.fire(one)
        elif one is not None and not one.done():
            if outcome == DUE:
                one.set_result(None)
            elif outcome == ERROR:
                self._raise(one, number, RemoteError(problems.from_json(value.encode(), "")))
            elif outcome == UNROUTABLE:
                self._raise(one, number, UnroutableError(value))
            else:
                one.set_result(journal.payload(outcome, value))

    def _raise(self, future: asyncio.Future[Any], number: int, error: Exception) -> None:
        self._raised[error] = number
        future.set_exception(error)

    def step_that_raised(self, error: BaseException) -> int | None:
        """The step whose failure an error is."""
        return self._raised.get(error)

    @property
    def signals_left(self) -> list[tuple[str, str, Any]]:
        """Name, outcome and value of the signals that nobody has waited for."""
        return [(name, *one) for name, waiting in self._signals.items() for one in waiting]

    def _signalled(self, name: str, outcome: str, value: Any) -> None:
        waiting = self._waiting_for_signals.get(name, deque())
        while waiting:
            _, future = waiting.popleft()
            self._numbers.pop(id(future), None)
            if not future.done():
                future.set_result(journal.payload(outcome, value))
                return
        self._signals.setdefault(name, deque()).append((outcome, value))


def _void(entries: list[Entry]) -> set[int]:
    """The places of the answers that a later attempt has forgotten."""
    forgotten: set[int] = set()
    void = set()
    for at in reversed(range(len(entries))):
        entry = entries[at]
        if entry[0] == AGAIN:
            forgotten.update(entry[3])
        elif entry[0] == GOT and entry[2] in forgotten:
            forgotten.remove(entry[2])
            void.add(at)
    return void


def _told(entry: Entry) -> str:
    return f"{entry[2]} {entry[3]}"


def place() -> str:
    """File and line, in the author's code, of what is running; empty if it is run by the loop itself."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not _LOOP:
        if not frame.f_code.co_filename.startswith(_NOT_THE_AUTHORS):
            return f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return ""


_LOOP = DurableLoop._run.__code__
_NOT_THE_AUTHORS = (__file__.rpartition("durable")[0], asyncio.__file__.rpartition("__init__")[0])
