"""What a run's steps ask for is done: requests and timers are published, functions are run. What answers them is read."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from broker.durable import journal
from broker.durable.journal import ERROR, GOT, OK, UNROUTABLE, Entry
from broker.durable.run import CALL, INVOKE, STEP, TIMER, Question
from broker.errors import InvalidInputError, UnencodableError, UnroutableError
from broker.handling.settlement import Settlement
from broker.log import logger
from broker.protocol import bodies, delays, problems
from broker.protocol import headers as h
from broker.protocol.message import Message, Publishing
from broker.protocol.outcomes import dead_letter
from broker.protocol.problems import problem
from broker.protocol.runs import DUE, step_cid
from broker.protocol.runs import TIMER as TIMER_TYPE

Answered = Callable[[Entry], None]


class Steps:
    """The steps of one run."""

    def __init__(
        self,
        settlement: Settlement,
        run_in_thread: Callable[..., asyncio.Future[Any]],
        service: str,
        run_id: str,
    ) -> None:
        self._publisher = settlement.publisher
        self._file = settlement.file
        self._run_in_thread = run_in_thread
        self._service = service
        self._run_id = run_id
        self._running: dict[int, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        """How many functions are running."""
        return len(self._running)

    async def do(self, questions: Iterable[Question], cid: str, answered: Answered) -> None:
        """Publish what is asked, and wait until it is confirmed; begin functions, and do not wait. `cid` is the run's, `answered` is called
        with the result of a function, and with what is known of a request at once: that nobody hosts its target.

        Raises:
            ConnectionLostError: the connection ended first.
        """
        publishing = []
        for one in questions:
            if one.kind == STEP:
                if one.number not in self._running:
                    self._running[one.number] = asyncio.ensure_future(self._run(one, answered))
            elif one.kind == TIMER:
                publishing.append(self._publish(one, self._timer(one, cid), answered))
            elif one.kind in (CALL, INVOKE):
                publishing.append(self._publish(one, one.ask, answered))
        if len(publishing) == 1:
            await publishing[0]
        elif publishing:
            await asyncio.gather(*publishing)

    async def close(self) -> None:
        for task in (running := list(self._running.values())):
            task.cancel()
        if running:
            await asyncio.wait(running)

    def _timer(self, question: Question, cid: str) -> Publishing:
        number = step_cid(self._run_id, question.number)
        headers = {h.PARENT: cid, DUE: question.ask}
        message = Message(b"", headers, correlation_id=number, message_id=number, type=TIMER_TYPE)
        seconds = delays.whole_seconds(min(max(0.0, question.ask - time.time()), delays.MAXIMUM))
        return delays.delayed(Publishing(self._service, message), seconds)

    async def _publish(self, question: Question, publishing: Publishing, answered: Answered) -> None:
        try:
            await self._publisher.publish(publishing)
        except (UnroutableError, UnencodableError) as error:
            if question.kind == CALL:
                outcome: tuple[str, Any] = (UNROUTABLE, delays.target(publishing))
                if isinstance(error, UnencodableError):
                    outcome = ERROR, _told("error", error, delays.target(publishing))
                answered([GOT, time.time(), question.number, *outcome, True])
            else:
                await self._bury(publishing, error)

    async def _bury(self, publishing: Publishing, error: Exception) -> None:
        """An invocation that nobody waits for is not lost."""
        message = publishing.message
        logger.warning("%s; it becomes a dead letter", error, extra={"cid": message.correlation_id})
        reason = "unroutable" if isinstance(error, UnroutableError) else "error"
        told = problem(reason, type(error).__name__, str(error), delays.target(publishing))
        await self._file(dead_letter(message, reason, told))

    async def _run(self, question: Question, answered: Answered) -> None:
        function, arguments, options = question.ask
        try:
            if inspect.iscoroutinefunction(function):
                result = await function(*arguments, **options)
            else:
                result = await self._run_in_thread(lambda: function(*arguments, **options))
            outcome: tuple[str, Any] = OK, _as_json(result, question)
        except Exception as error:
            logger.debug("a step failed", exc_info=error)
            outcome = ERROR, _told("error", error, question.what)
        del self._running[question.number]
        answered([GOT, time.time(), question.number, *outcome, True])


def answer_of(message: Message) -> tuple[str, Any]:
    """The outcome and value of what answers a step."""
    if message.type == TIMER_TYPE:
        return journal.DUE, None
    replier = str(message.headers.get(h.SERVICE, ""))
    if message.headers.get(h.STATUS) == h.ERROR:
        return ERROR, problems.to_json(problems.from_json(message.body, replier)).decode()
    try:
        return journal.value(bodies.decode(message))
    except InvalidInputError as error:
        return ERROR, problems.to_json(problem("invalid", "Invalid reply", str(error), replier)).decode()


def _as_json(result: Any, question: Question) -> Any:
    try:
        # As it will be read: what it was before would be seen once, and never again.
        return json.loads(json.dumps(to_jsonable_python(result)))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise TypeError(f"the result of step {question.what} has no JSON form: {error}") from None


def _told(reason: str, error: Exception, where: str) -> str:
    text = "".join(traceback.format_exception(error))
    logger.info("a step of a durable service failed: %s", text.rstrip().rpartition("\n")[2])
    return problems.to_json(problem(reason, type(error).__name__, str(error), where)).decode()
