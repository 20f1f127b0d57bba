"""The lane's protocol, driven by bytes cut at every place: what it takes, what it leaves to aiormq, what it refuses."""

from __future__ import annotations

import asyncio
import random
from contextlib import closing
from typing import Any

import pamqp.frame
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp.body import ContentBody
from pamqp.commands import Basic, Channel, Connection
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from broker.errors import ConnectionLostError, NotAcceptedError, UnroutableError
from broker.handling.invoker import retrieved
from broker.transport import frames
from broker.transport.acks import Acks
from broker.transport.confirms import Confirms
from broker.transport.stream import SHOW_HEARTBEAT_EVERY, LaneProtocol


class Socket(asyncio.Transport):
    """What the protocol writes, and whether it has given up."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.aborted = False

    def write(self, data: Any) -> None:
        self.writes.append(bytes(data))

    def abort(self) -> None:
        self.aborted = True

    def is_closing(self) -> bool:
        return self.aborted


class Recorder:
    """A lane that writes down what it is given."""

    def __init__(self) -> None:
        self.got: list[tuple[Any, ...]] = []

    def on_method(self, method: int, payload: bytes) -> bool:
        if method not in (frames.BASIC_ACK, frames.BASIC_NACK):
            return False
        self.got.append(("confirm", method, *frames.tag_and_bits(payload)))
        return True

    def on_content(self, method: int, payload: bytes, header: bytes, body: bytes) -> None:
        self.got.append(("content", method, frames.decode_properties(header, body).message_id, body))


class Peer:
    """A protocol on a loop, its lane on channel 1, and aiormq's end of it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.reader = asyncio.StreamReader(loop=loop, limit=2**24)
        self.protocol = LaneProtocol(self.reader, loop)
        self.socket = Socket()
        self.protocol.connection_made(self.socket)
        self.lane = Recorder()
        self.protocol.attach(1, self.lane)
        self.failures: list[str] = []
        self.protocol.failed = self.failures.append

    def cold(self) -> bytes:
        return bytes(self.reader._buffer)  # type: ignore[attr-defined]


@pytest.fixture
def loop():
    loop = asyncio.new_event_loop()
    yield loop
    loop.close()


def marshal(*marshalled: tuple[Any, int]) -> bytes:
    return b"".join(pamqp.frame.marshal(frame, channel) for frame, channel in marshalled)


def content(method: Any, channel: int, body: bytes, message_id: str, step: int = 10) -> bytes:
    parts = [ContentBody(body[at : at + step]) for at in range(0, len(body), step)]
    header = ContentHeader(body_size=len(body), properties=Basic.Properties(message_id=message_id, headers={"k": "v"}))
    return marshal((method, channel), (header, channel), *((part, channel) for part in parts))


def deliver(tag: int) -> Basic.Deliver:
    return Basic.Deliver(consumer_tag="c", delivery_tag=tag, redelivered=False, exchange="", routing_key="q")


COLD = marshal(
    (Heartbeat(), 0),
    (Channel.OpenOk(), 2),
    (Basic.ConsumeOk("c"), 1),
    (Basic.Cancel("c"), 1),
    (Connection.Blocked("low"), 0),
)
RETURN = Basic.Return(reply_code=312, reply_text="NO_ROUTE", exchange="", routing_key="q")
STREAM = (
    COLD
    + content(deliver(1), 1, b"", "empty")
    + content(deliver(2), 1, b"0123456789abcdef", "two frames")
    + marshal((Basic.Ack(1, False), 1), (Basic.Nack(2, True), 1))
    + content(RETURN, 1, b"returned", "back")
    + content(deliver(1), 2, b"for aiormq", "cold")
    + COLD
)
COLD_PART = COLD + content(deliver(1), 2, b"for aiormq", "cold") + COLD
GOT = [
    ("content", frames.BASIC_DELIVER, "empty", b""),
    ("content", frames.BASIC_DELIVER, "two frames", b"0123456789abcdef"),
    ("confirm", frames.BASIC_ACK, 1, 0),
    ("confirm", frames.BASIC_NACK, 2, 3),
    ("content", frames.BASIC_RETURN, "back", b"returned"),
]


def test_a_stream_cut_at_every_place_is_the_same_stream(loop: asyncio.AbstractEventLoop) -> None:
    for cut in range(len(STREAM) + 1):
        peer = Peer(loop)
        peer.protocol.data_received(STREAM[:cut])
        peer.protocol.data_received(STREAM[cut:])
        assert peer.lane.got == GOT, cut
        assert peer.cold() == COLD_PART, cut


def test_a_stream_of_single_bytes_is_the_same_stream(loop: asyncio.AbstractEventLoop) -> None:
    peer = Peer(loop)
    for at in range(len(STREAM)):
        peer.protocol.data_received(STREAM[at : at + 1])
    assert (peer.lane.got, peer.cold()) == (GOT, COLD_PART)


@given(st.lists(st.integers(1, 60), min_size=1))
def test_a_stream_in_pieces_of_any_size_is_the_same_stream(sizes: list[int]) -> None:
    loop = asyncio.new_event_loop()
    peer, at, turn = Peer(loop), 0, 0
    while at < len(STREAM):
        size = sizes[turn % len(sizes)]
        peer.protocol.data_received(STREAM[at : at + size])
        at, turn = at + size, turn + 1
    assert (peer.lane.got, peer.cold()) == (GOT, COLD_PART)
    loop.close()


def test_without_a_lane_everything_is_aiormqs(loop: asyncio.AbstractEventLoop) -> None:
    peer = Peer(loop)
    peer.protocol.detach(1)
    peer.protocol.data_received(STREAM)
    assert (peer.cold(), peer.lane.got) == (STREAM, [])
    other_version = Peer(loop)
    other_version.protocol.detach(1)
    other_version.protocol.data_received(b"AMQP\x00\x00\x09\x01")
    assert other_version.cold() == b"AMQP\x00\x00\x09\x01"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (content(deliver(1), 1, b"x", "m")[:-1] + b"\x00", "does not end where its size says"),
        (marshal((ContentBody(b"x"), 1)), "without a method before it"),
        (marshal((deliver(1), 1), (ContentBody(b"x"), 1)), "where it does not belong"),
        (marshal((deliver(1), 1), (deliver(2), 1)), "in the middle of a message"),
        (
            content(deliver(1), 1, b"12345", "m")[:-1] + b"\xce" + marshal((ContentBody(b"6"), 1)),
            "without a method before it",
        ),
        (
            marshal((deliver(1), 1), (ContentHeader(body_size=1), 1), (ContentBody(b"22"), 1)),
            "where it does not belong",
        ),
        (b"\x01\x00\x01\x00\x00\x00\x02xx\xce", "has no number"),
        (b"\x01\x00\x01\x00\x00\x00\x06\x00\x3c\x00\x50xx\xce", "is cut off"),
    ],
)
def test_malformed_frames_end_the_connection_with_a_reason(
    loop: asyncio.AbstractEventLoop, data: bytes, words: str
) -> None:
    peer = Peer(loop)
    peer.protocol.data_received(COLD + data + STREAM)
    assert len(peer.failures) == 1
    assert words in peer.failures[0]
    assert peer.socket.aborted


def test_a_mutated_stream_never_hangs_and_ends_in_an_error_or_in_other_messages() -> None:
    """200 streams a seed, each with some of its bytes changed, in pieces of random size."""
    for seed in range(200):
        dice = random.Random(seed)
        stream = bytearray(STREAM * 3)
        for _ in range(dice.randint(1, 5)):
            stream[dice.randrange(len(stream))] = dice.randrange(256)
        loop = asyncio.new_event_loop()
        peer, at = Peer(loop), 0
        while at < len(stream) and not peer.socket.aborted:
            size = dice.randint(1, 200)
            try:
                peer.protocol.data_received(bytes(stream[at : at + size]))
            except frames.MalformedFrameError:
                raise AssertionError(f"seed {seed}: an error escaped") from None
            at += size
        assert len(peer.failures) == peer.socket.aborted
        assert len(peer.lane.got) <= 3 * len(GOT)
        loop.close()


def test_what_is_sent_in_one_turn_leaves_in_one_write(loop: asyncio.AbstractEventLoop) -> None:
    async def test() -> None:
        peer = Peer(asyncio.get_running_loop())
        peer.protocol.send(b"a")
        peer.protocol.flush_with(lambda: peer.protocol.send(b"c"))
        peer.protocol.send(b"b")
        assert peer.socket.writes == []
        await asyncio.sleep(0)
        assert peer.socket.writes == [b"abc"]
        peer.protocol.pause_writing()
        peer.protocol.send(b"d")
        await asyncio.sleep(0)
        assert len(peer.socket.writes) == 1
        peer.protocol.resume_writing()
        await asyncio.sleep(0)
        assert peer.socket.writes == [b"abc", b"d"]

    loop.run_until_complete(test())


def test_aiormq_is_shown_a_heartbeat_when_only_hot_frames_flow(loop: asyncio.AbstractEventLoop) -> None:
    peer = Peer(loop)
    hot = content(deliver(1), 1, b"x", "m")
    peer.protocol.data_received(hot)
    assert peer.cold() == b""
    peer.protocol._last_shown -= SHOW_HEARTBEAT_EVERY + 1
    peer.protocol.data_received(hot)
    peer.protocol.data_received(hot)
    assert peer.cold() == frames.HEARTBEAT


# Acknowledgements


@settings(max_examples=300)
@given(st.data())
def test_every_finished_tag_is_acknowledged_once_and_no_other_ever(data: st.DataObject) -> None:
    """A model of the broker: it knows which tags it waits for, and refuses any other."""
    count = data.draw(st.integers(1, 30))
    waiting = set(range(1, count + 1))
    finished: set[int] = set()
    given_back: set[int] = set()
    acks = Acks()

    def broker_reads(tag: int, multiple: bool) -> None:
        assert tag in waiting, "the broker would close the channel"
        covered = {one for one in waiting if one <= tag} if multiple else {tag}
        assert covered <= finished, "an unfinished message was acknowledged"
        waiting.difference_update(covered)

    for tag in data.draw(st.permutations(range(1, count + 1))):
        what = data.draw(st.sampled_from(["finish", "finish", "finish", "requeue", "nothing"]))
        if what == "finish":
            finished.add(tag)
            acks.finish(tag)
        elif what == "requeue":
            given_back.add(tag)
            acks.requeue(tag)
            waiting.remove(tag)
        if data.draw(st.booleans()):
            for one in acks.take():
                broker_reads(*one)
    for one in acks.take():
        broker_reads(*one)
    assert waiting == set(range(1, count + 1)) - finished - given_back
    assert acks.settled == count - len(waiting)


def test_a_finished_prefix_goes_with_one_frame() -> None:
    acks = Acks()
    for tag in (2, 1, 3, 5):
        acks.finish(tag)
    assert acks.take() == [(5, False), (3, True)]
    acks.finish(4)
    assert acks.take() == [(4, True)]


# Confirms


@settings(max_examples=300)
@given(st.data())
def test_every_confirm_reaches_what_it_is_for_and_no_other(data: st.DataObject) -> None:
    """A model of the channel: which publishes are open, which came back, and what each ended as."""
    with closing(asyncio.new_event_loop()) as loop:
        _hold_confirms_against_a_model(data, loop)


def _hold_confirms_against_a_model(data: st.DataObject, loop: asyncio.AbstractEventLoop) -> None:
    confirms = Confirms()
    futures: list[asyncio.Future[None]] = []
    keys: list[str] = []
    ended: dict[int, object] = {}

    came_back: set[int] = set()

    def end(number: int, accepted: bool) -> None:
        refused = None if accepted else NotAcceptedError
        ended[number] = UnroutableError if number in came_back else refused

    for _ in range(data.draw(st.integers(1, 40))):
        step = data.draw(st.sampled_from(["publish", "publish", "return", "one", "up to", "all"]))
        waiting = [number for number in range(1, len(futures) + 1) if number not in ended]
        accepted = data.draw(st.booleans())
        if step == "publish":
            keys.append(data.draw(st.sampled_from("abc")))
            futures.append(asyncio.Future(loop=loop))
            futures[-1].add_done_callback(retrieved)
            confirms.expect(futures[-1], keys[-1], "m")
        elif waiting and step == "return":
            key = keys[data.draw(st.sampled_from(waiting)) - 1]
            confirms.on_return(key, "m")
            came_back.update(number for number in waiting if keys[number - 1] == key)
        elif waiting and step == "one":
            number = data.draw(st.sampled_from(waiting))
            confirms.on_confirm(number, multiple=False, accepted=accepted)
            end(number, accepted)
        elif waiting:
            last = waiting[-1] if step == "all" else data.draw(st.sampled_from(waiting))
            confirms.on_confirm(0 if step == "all" else last, multiple=True, accepted=accepted)
            for number in waiting:
                if number <= last:
                    end(number, accepted)
        assert len(confirms) == len(futures) - len(ended)
    for number, future in enumerate(futures, 1):
        assert future.done() == (number in ended)
        if future.done():
            error = future.exception()
            assert (None if error is None else type(error)) is ended[number]
    for unknown in (len(futures) + 1, *list(ended)[:1]):
        with pytest.raises(frames.MalformedFrameError, match="not published or is confirmed"):
            confirms.on_confirm(unknown, multiple=False, accepted=True)
    confirms.fail("gone")
    assert all(isinstance(f.exception(), ConnectionLostError) for n, f in enumerate(futures, 1) if n not in ended)
