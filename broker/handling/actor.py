"""One run of a durable service at work: what comes for it is journalled, then what it asks is done, then what came is acknowledged.

What comes while it is busy is taken together, in one append. The store takes an append only if it is the next one: of two processes that
work on one run at once, the later reads again. A crash between append and confirm has the message delivered again, and what its
answer had asked is published again, with the same CIDs.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Any

from broker.backoff import backoff
from broker.durable import journal
from broker.durable.journal import (
    AGAIN,
    BEGIN,
    CANCEL,
    CANCELLED,
    DIED,
    DONE,
    FAILING,
    GOT,
    LEFT,
    OVER,
    REPEAT,
    RUNNING,
    SIGNAL,
    Entry,
    Journal,
)
from broker.durable.loop import NeverWaitsError
from broker.durable.run import ChangedError, Question, Run
from broker.errors import InvalidInputError
from broker.handling import endings, responses
from broker.handling.durable import Again, DurableInvocation
from broker.handling.invoker import Invoker
from broker.handling.settlement import Settlement
from broker.handling.steps import Steps, answer_of
from broker.hosting.definition import ServiceDefinition
from broker.log import handling
from broker.protocol import archive, bodies, runs
from broker.protocol import headers as h
from broker.protocol.delays import delayed
from broker.protocol.message import Message, Publishing, Reply
from broker.protocol.outcomes import (
    NOTHING,
    Outcome,
    failure,
    republished,
)
from broker.protocol.problems import problem
from broker.service import Request
from broker.stores.interface import Head, Store, StoreError

MOST_AT_ONCE = 1000
"""Messages that are taken together."""
STORE_AGAIN = 1
"""Seconds after which what could not be journalled comes again."""
COMES_AGAIN = "comes-again"
"""The header of what a process had in hand when its store failed: it may have been journalled all the same."""
NO_RUN_TRIES = "no-run"
"""The header that counts how often a run was looked for, each time a second later than the last."""
MOST_NO_RUN_TRIES = 10
FIRST_PAUSE, LONGEST_PAUSE = 0.01, 1.0


@dataclass(frozen=True, slots=True)
class Workshop:
    """What all runs of a process share. A finished run is kept in the store for `keep` seconds."""

    invoker: Invoker
    store: Store
    keep: float
    settlement: Settlement
    run_in_thread: Callable[..., asyncio.Future[Any]]


class Event:
    """Something that takes a run further: a message, or what a function has returned. `outcome` is what is to be published where the run,
    or its attempt, has ended by it."""

    def __init__(self, *, redelivered: bool = False) -> None:
        self.redelivered = redelivered
        self.outcome: Outcome = NOTHING


class Arrival(Event):
    """A message for a run; `step` is the one that it answers, None for a request or signal. `settled` has what is to be published before it
    is acknowledged."""

    def __init__(self, message: Message, step: int | None, *, redelivered: bool, is_reply: bool) -> None:
        super().__init__(redelivered=redelivered or COMES_AGAIN in message.headers)
        self.message = message
        self.step = step
        self.is_reply = is_reply
        self.settled: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


class TooLongError(Exception):
    """A run has asked for more than a journal may hold."""

    def __init__(self, steps: int, size: int) -> None:
        super().__init__(
            f"its journal has {steps:,} steps and {size / 1e6:,.0f} MB; at most {journal.MAX_STEPS:,} steps and "
            f"{journal.MAX_BYTES / 1e6:,.0f} MB are kept: `return self.again(payload)` begins with an empty one"
        )


class _Behind(Exception):
    """Another process has gone on with the run: it has to be read again."""


class Actor:
    """`told` is given what the store says, None if it works; `rest` is called when there is nothing to do."""

    def __init__(
        self,
        workshop: Workshop,
        definition: ServiceDefinition,
        run_id: str,
        told: Callable[[StoreError | None], None],
        rest: Callable[[Actor], None],
    ) -> None:
        self._workshop = workshop
        self._definition = definition
        self.run_id = run_id
        self._told = told
        self._rest = rest
        self._steps = Steps(workshop.settlement, workshop.run_in_thread, definition.name, run_id)
        self._journal = Journal()
        self._live: Run | None = None
        self._request = Message()
        self._is_fresh = False
        self._asked: list[tuple[Run, Question]] = []
        self._next: tuple[Run, Again, Event] | None = None
        """The run is to begin anew, with this, once all that it has asked for is published."""
        self._published: set[int] = set()
        """The chunks whose questions this process knows to be published."""
        self._again: set[int] = set()
        """The steps of which it is not known that they were published, of those that are looked at now."""
        self._inbox: list[Arrival] = []
        self._results: list[Entry] = []
        self._held: list[Arrival] = []
        self._working: asyncio.Task[None] | None = None

    @property
    def is_busy(self) -> bool:
        return self._working is not None or len(self._steps) > 0

    @property
    def weight(self) -> int:
        """How much memory it takes: its steps."""
        return 0 if self._live is None else 1 + len(self._live.questions)

    def put(self, arrival: Arrival) -> None:
        """A message has come."""
        self._inbox.append(arrival)
        self._go_on()

    def let_go(self) -> None:
        """Forget all that is in the store."""
        if self._live is not None:
            self._live.abandon()
        self._live, self._journal, self._asked, self._next = None, Journal(), [], None

    async def close(self) -> None:
        await self._steps.close()
        if self._working is not None:
            self._working.cancel()
            await asyncio.wait([self._working])
        self.let_go()

    def _answered(self, entry: Entry) -> None:
        self._results.append(entry)
        self._go_on()

    def _go_on(self) -> None:
        if self._working is None:
            self._working = asyncio.ensure_future(self._work())

    async def _work(self) -> None:
        try:
            while self._inbox or self._results:
                # Without a message in hand, what asked for the function comes again, and with it the function is run again.
                results, self._results = self._results if self._held else [], []
                batch, self._inbox = self._inbox[:MOST_AT_ONCE], self._inbox[MOST_AT_ONCE:]
                self._held += batch
                if not batch and not results:
                    continue
                try:
                    await self._take_until_taken(batch, results)
                except BaseException as error:
                    self._give_up(error)
                    if not isinstance(error, Exception):
                        raise
                else:
                    self._told(None)
                    # A function runs as long as what asked for it is not acknowledged: if its process dies, another runs it.
                    if not len(self._steps) and not self._results:
                        self._settle()
        finally:
            self._working = None
            if not self.is_busy:
                self._rest(self)

    def _settle(self) -> None:
        held, self._held = self._held, []
        for arrival in held:
            if not arrival.settled.done():
                arrival.settled.set_result(arrival.outcome)

    def _give_up(self, error: BaseException) -> None:
        """What is not done comes again."""
        self.let_go()
        held, self._held = self._held, []
        if isinstance(error, StoreError):
            self._told(error)
        for arrival in held:
            if arrival.settled.done():
                continue
            if isinstance(error, StoreError):
                arrival.settled.set_result(self._later(arrival, STORE_AGAIN, **{COMES_AGAIN: True}))
            else:
                arrival.settled.set_exception(error if isinstance(error, Exception) else asyncio.CancelledError())

    def _later(self, arrival: Arrival, seconds: int, **headers: Any) -> Outcome:
        message = republished(arrival.message, is_reply=arrival.is_reply)
        message.headers |= headers
        return Outcome(again=delayed(Publishing(self._definition.name, message), seconds))

    async def _take_until_taken(self, batch: list[Arrival], results: list[Entry]) -> None:
        try:
            await self._take(batch, results, is_new=self._seems_new(batch))
            return
        except _Behind:
            self.let_go()
        for pause in backoff(FIRST_PAUSE, LONGEST_PAUSE):
            try:
                await self._take(batch, results, is_new=False)
            except _Behind:
                self.let_go()
                await asyncio.sleep(pause)
            else:
                return

    def _seems_new(self, batch: list[Arrival]) -> bool:
        """Whether what has come is most likely a run's beginning: then it is not looked for in the store, which will refuse it if it is
        there."""
        if self._journal.state is not None or len(self._held) != 1 or len(batch) != 1:
            return False
        (one,) = batch
        headers = one.message.headers
        return one.step is None and not one.redelivered and runs.SIGNAL not in headers and h.ATTEMPT not in headers

    async def _take(self, batch: list[Arrival], results: list[Entry], *, is_new: bool) -> None:
        """Journal what has come and what is asked then, and have that done."""
        self._forget_questions()
        repeated: set[int] = set()
        by_itself = Event()
        self._is_fresh = self._journal.state is None
        for arrival in batch:
            arrival.outcome = NOTHING
        if self._is_fresh and not is_new:
            await self._read(by_itself)
        for entry in results:
            self._answered_by(entry, by_itself, repeated)
        for arrival in batch:
            self._arrived(arrival, repeated)
        if self._next is not None:
            self._repeat_all(repeated)  # afterwards nobody could tell what it was
        await self._note_and_do(repeated)
        while self._next is not None:
            self._forget_questions()
            self._begin_anew(*self._next)
            await self._note_and_do(set())
            await self._workshop.store.drop(self.run_id, self._journal.began_in)
        if by_itself.outcome is not NOTHING:
            # Now, as the messages in hand are acknowledged one by one, and their connection may be lost already.
            await self._workshop.settlement.publish(by_itself.outcome, self._request)
        if self._journal.state != RUNNING and self._live is not None:
            self._live.abandon()
            self._live = None

    def _forget_questions(self) -> None:
        self._asked, self._again = [], set()

    async def _note_and_do(self, repeated: set[int]) -> None:
        """Journal what has happened and what is asked for then, and have that done, and what of `repeated` chunks may not have been."""
        if self._journal.open:
            repeated.add(self._journal.chunks)
            await self._append()
        await self._steps.do(self._wanted(), str(self._request.correlation_id), self._answered)
        self._published |= repeated

    def _wanted(self) -> list[Question]:
        """What is to be done: what was asked for just now, and the steps of which it is not known that it was done."""
        wanted = [question for live, question in self._asked if live.wants(question)]
        again = self._again - {question.number for _, question in self._asked}
        if again and (live := self._live or self._at_its_end()) is not None:
            repeated = (live.question(number) for number in sorted(again))
            wanted += [one for one in repeated if one is not None and live.wants(one)]
            if live is not self._live:
                live.abandon()
        return wanted

    def _at_its_end(self) -> Run | None:
        """A run that is over, as it was then: only its handler can tell what it has asked for."""
        live = self._new_run()
        try:
            live.replay(self._journal.entries[1:])
        except (ChangedError, NeverWaitsError) as error:
            live.abandon()
            self._told_in_log()
            logging.getLogger(self._definition.name).error("what it asked for at its end may be missing: %s", error)
            return None
        return live

    async def _read(self, event: Event) -> None:
        self._journal = Journal.of(await self._workshop.store.read(self.run_id))
        if self._journal.state is not None:
            self._request = archive.loads(self._journal.begin[3])
            if (repeat := self._journal.repeat) is not None:
                self._request.reply_to = repeat[2]
        if self._journal.state == RUNNING:
            self._replay(event)

    def _replay(self, event: Event) -> None:
        """Bring the handler to where the journal is."""
        live = self._live = self._new_run()
        entries = self._journal.entries[1:]
        self._go_through(lambda: live.replay(entries), event)

    def _new_run(self) -> Run:
        begin = self._journal.begin
        return Run(self._handle, begin[1], begin[4], int(self.run_id[:8], 16) << 24)

    async def _handle(self, live: Run) -> Any:
        """The handler, on its own loop."""
        definition, message = self._definition, self._request
        is_reply = h.STATUS in message.headers
        if len(message.body) > self._workshop.invoker.max_body:
            raise responses.TooLarge(len(message.body), self._workshop.invoker.max_body)
        request = Request(message, self._journal.attempt, False, h.read(message).source, is_reply)
        service = definition.cls()
        invocation = DurableInvocation(self._workshop.invoker, definition, live, self.run_id, request)
        service._handling = invocation
        handle = service.handle  # type: ignore[attr-defined]
        result = await handle(*responses.arguments(definition, message, is_reply))
        return invocation.response.payload if result is None else result

    async def _append(self) -> None:
        state, before = self._journal.state, self._journal.kept_state
        assert state is not None
        text = journal.dumps(self._journal.open)
        head = None
        if state != before:
            # A foreign CID need not be UTF-8.
            cid = str(self._request.correlation_id).encode("utf-8", "backslashreplace").decode()
            head = Head(self.run_id, self._definition.name, cid, state, self._journal.begin[1], time.time())
        keep = self._workshop.keep if state in OVER else None
        if not await self._workshop.store.append(self.run_id, self._journal.chunks, text, head, keep):
            raise _Behind
        self._journal.close(len(text))

    def _arrived(self, arrival: Arrival, repeated: set[int]) -> None:
        if runs.SIGNAL in arrival.message.headers:
            self._signalled(arrival, repeated)
        elif arrival.step is not None:
            if not self._answered_by([GOT, time.time(), arrival.step, *answer_of(arrival.message)], arrival, repeated):
                self._no_run(arrival)
        else:
            self._requested(arrival, repeated)

    def _answered_by(self, entry: Entry, event: Event, repeated: set[int]) -> bool:
        """A step has an answer; False if there is no such step."""
        state, live, step = self._journal.state, self._live, entry[2]
        if state is None:
            return False
        if step < self._journal.begin[4]:  # it was used before the run began anew
            self._repeated(event, self._journal.began_in, repeated)
        elif (chunk := self._journal.chunk_of(step)) is not None:
            self._repeated(event, chunk, repeated)
        elif state in (DONE, CANCELLED):
            pass  # nobody waits for it any more
        elif live is None or live.takes(step):
            self._happened(entry, event)
        elif not self._is_fresh:
            raise _Behind
        else:
            return False
        return True

    def _requested(self, arrival: Arrival, repeated: set[int]) -> None:
        state, attempt = self._journal.state, arrival.message.headers.get(h.ATTEMPT, 1)
        if state is not None and not self._is_fresh:
            raise _Behind  # what it is to lead to depends on what others have done with the run
        if state is None:
            self._request = republished(arrival.message, is_reply=arrival.is_reply)
            self._request.expiration = None  # it has come in time
            self._begin(0, arrival)
        elif state == FAILING and attempt == self._journal.end[2] + 1:
            if arrival.redelivered:  # it may have begun the run anew, and this attempt be another's
                self._repeat_all(repeated)
            self._try_again(attempt, [], arrival)
        elif state == DIED and not arrival.redelivered:
            step = self._journal.end[6]
            self._try_again(1, [] if step is None else [step], arrival)
        elif state in OVER:
            arrival.outcome = self._outcome(arrival.message)
            if arrival.redelivered:
                self._repeat_all(repeated)
        else:
            self._note_where_to_reply(arrival.message)
            if arrival.redelivered:  # this attempt may have begun with it
                self._repeat_all(repeated)
                if state == FAILING:
                    arrival.outcome = self._outcome()
            else:
                self._repeated(arrival, self._journal.began_in, repeated)

    def _note_where_to_reply(self, message: Message) -> None:
        """Whoever asks for a run again, perhaps as it was not there any more, gets the reply."""
        if message.reply_to and message.reply_to != self._request.reply_to:
            self._request.reply_to = message.reply_to
            self._journal.add([REPEAT, time.time(), message.reply_to])

    def _signalled(self, arrival: Arrival, repeated: set[int]) -> None:
        message, state = arrival.message, self._journal.state
        name = message.headers[runs.SIGNAL]
        try:
            if not isinstance(name, str):
                raise InvalidInputError(f"header 'signal' is a name, not {type(name).__name__}")
            value = journal.value(bodies.decode(message))
        except InvalidInputError as error:
            told = problem("invalid", "Invalid signal", str(error), self._definition.name)
            arrival.outcome = failure(message, "invalid", told)
            return
        digest = hashlib.blake2s(message.body, digest_size=8).hexdigest()
        number = message.message_id or f"{name} {digest}"
        if (chunk := self._journal.chunk_of(number)) is not None and (message.message_id or arrival.redelivered):
            self._repeated(arrival, chunk, repeated)
        elif state is None:
            self._no_run(arrival)
        elif state in (DONE, CANCELLED):
            arrival.outcome = endings.is_over(message, self._definition.name, self._journal.end)
        elif name == runs.CANCEL:
            self._happened([CANCEL, time.time(), number], arrival)
            if state != RUNNING:
                self._journal.add(endings.cancelled())
            if state == FAILING:  # where it has failed for good, that was its reply
                arrival.outcome = self._outcome()
        else:
            self._happened([SIGNAL, time.time(), name, *value, number], arrival)

    def _repeated(self, event: Event, chunk: int, repeated: set[int]) -> None:
        """What has come is journalled already: what came of it may not have been published."""
        if not self._is_fresh:
            raise _Behind  # another process may have forgotten it for another attempt
        for one in self._journal.with_what_followed(chunk):
            is_under_way = one == self._journal.chunks
            if not event.redelivered and (is_under_way or one in self._published):
                continue
            if not is_under_way:
                self._repeat(one, repeated)
            if one == self._journal.ended_in and self._journal.state != RUNNING:
                event.outcome = self._outcome()

    def _repeat(self, chunk: int, repeated: set[int]) -> None:
        """Have what was asked for in a chunk done, as it may not have been."""
        self._again.update(self._journal.asked_in(chunk))
        repeated.add(chunk)

    def _repeat_all(self, repeated: set[int]) -> None:
        """The same of all chunks of which this process does not know better."""
        for chunk in range(self._journal.began_in, self._journal.chunks):
            if chunk not in self._published:
                self._repeat(chunk, repeated)

    def _no_run(self, arrival: Arrival) -> None:
        """The store may be behind, or the request still under way."""
        message = arrival.message
        tries = message.headers.get(NO_RUN_TRIES)
        tries = tries + 1 if type(tries) is int else 1
        if tries <= MOST_NO_RUN_TRIES:
            arrival.outcome = self._later(arrival, tries, **{NO_RUN_TRIES: tries})
            return
        arrival.outcome = endings.no_run(message, self._definition.name)

    def _begin(self, first: int, event: Event) -> None:
        kept, journal = archive.dumps(self._request), self._journal
        journal.add([BEGIN, time.time(), self._definition.name, kept, first, journal.chunks, journal.last_signals])
        live = self._live = self._new_run()
        self._go_through(live.begin, event)

    def _try_again(self, attempt: int, forgotten: list[int], arrival: Arrival) -> None:
        self._note_where_to_reply(arrival.message)
        self._journal.add([AGAIN, time.time(), attempt, forgotten])
        self._again.update(forgotten)
        self._replay(arrival)

    def _happened(self, entry: Entry, event: Event) -> None:
        """Go on with what has come. If no attempt is under way, it is kept for the next."""
        self._journal.add(entry)
        if (live := self._live) is not None and self._journal.state == RUNNING:
            self._go_through(lambda: live.feed(entry), event)

    def _go_through(self, action: Callable[[], None], event: Event) -> None:
        """Have the handler go on, and note what it asks for, and how it ends."""
        live = self._live
        assert live is not None
        try:
            action()
            if len(live.questions) > journal.MAX_STEPS or self._journal.size > journal.MAX_BYTES:
                raise TooLongError(len(live.questions), self._journal.size)
        except (ChangedError, NeverWaitsError, TooLongError) as error:
            live.abandon()
            self._live = None
            self._died("changed" if isinstance(error, ChangedError) else "error", error, event)
            return
        for question in live.questions[self._journal.asked :]:
            self._journal.add(question.entry)
            self._asked.append((live, question))
        for number in live.left():
            self._journal.add([LEFT, time.time(), number])
        if live.is_done:
            self._ended(live, event)

    def _ended(self, live: Run, event: Event) -> None:
        try:
            result = live.task.result()
            if isinstance(result, Again):
                if not self._journal.has_gone_on:
                    raise RuntimeError("`again` without having waited for anything: that has no end")
                self._next = live, result, event
                return
            body, content_type, headers = responses.encoded(self._definition, result)
        except asyncio.CancelledError:
            self._journal.add(endings.cancelled())
        except BaseException as error:
            self._failed(responses.failure_in(error), live, event)
            return
        else:
            self._journal.add(endings.done(body, content_type, headers))
        event.outcome = self._outcome()

    def _begin_anew(self, live: Run, again: Again, event: Event) -> None:
        self._next = None
        body, content_type, _ = responses.encoded(self._definition, Reply(again.payload))
        request = copy(self._request)
        request.body, request.content_type = body, content_type
        self._request = request
        live.abandon()
        self._begin(live.next_number, event)
        for name, outcome, value in live.signals_left:
            if self._journal.state == RUNNING:
                self._happened([SIGNAL, time.time(), name, outcome, value, ""], event)

    def _failed(self, error: Exception, live: Run, event: Event) -> None:
        while isinstance(error, ExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        step, last = live.step_that_raised(error), self._journal.last_answer()
        attempt = self._told_in_log()
        self._journal.add(endings.failed(self._definition, self._request, attempt, error, step, is_last=step == last))
        event.outcome = self._outcome()

    def _died(self, reason: str, error: Exception, event: Event) -> None:
        self._journal.add(endings.died(self._definition.name, self._told_in_log(), reason, error))
        event.outcome = self._outcome()

    def _told_in_log(self) -> int:
        """Have what is logged now say which run it is of; returns the attempt."""
        attempt = self._journal.attempt
        handling.set((str(self._request.correlation_id), self._definition.name, attempt))
        return attempt

    def _outcome(self, repeat: Message | None = None) -> Outcome:
        """What is to be published as the run, or its attempt, has ended; for a repeat of its request, that is what is answered."""
        return endings.outcome(repeat or self._request, self._definition.name, self._journal.end)
