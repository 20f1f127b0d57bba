"""The story of an invocation as a tree on a terminal. Nothing of it reaches the terminal unescaped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rich.text import Text
from rich.tree import Tree

from broker.log import escaped
from broker.protocol.events import Event
from broker.recording.reading import when
from broker.recording.spans import ago, span
from broker.recording.trace import Step, Story, begun

MOST_SHOWN = 500
STYLES = {"ok": "green", "retried": "yellow"}
FAILED = "bold red"


def drawn(story: Story, asked: str) -> Tree:
    """The tree, times relative to its beginning."""
    assert story.root is not None
    left = [MOST_SHOWN]
    tree = _step(None, story.root, story.root.begun, asked, left)
    if story.is_cut or left[0] <= 0:
        tree.add(Text("… more than can be shown: ask for the CID of a part of it, or --json", style="dim"))
    return tree


def _step(parent: Tree | None, step: Step, start: int, asked: str, left: list[int]) -> Tree:
    left[0] -= 1
    line = Text()
    line.append(escaped(step.target or _target(step) or "?"), style="bold")
    line.append(f"  {escaped(step.cid)}", style="reverse" if step.cid == asked else "dim")
    if parent is None:
        line.append(f"  {when(start).isoformat(sep=' ', timespec='milliseconds').replace('+00:00', 'Z')}", style="dim")
    else:
        line.append(f"  {ago(step.begun - start)}", style="dim")
    if step.delay:
        line.append(f"  delayed by {step.delay:g} s")
    node = Tree(line, guide_style="dim") if parent is None else parent.add(line)
    for text in _lines(step, start):
        node.add(text)
    for child in step.children:
        if left[0] <= 0:
            break
        _step(node, child, start, asked, left)
    return node


def _target(step: Step) -> str | None:
    return next((str(one.get("service")) for one in step.handlings if "reply" not in one), None)


def _lines(step: Step, start: int) -> Iterator[Text]:
    ready: dict[Any, int | None] = {}
    handled_before = None if step.requested is None else step.requested + int((step.delay or 0) * 1e6)
    for one in step.handlings:
        service = one.get("service")
        yield _handling(one, start, ready.get(service, handled_before))
        ready[service] = one["t"] + int(one.get("retry_in", 0) * 1e6) if "retry_in" in one else None
        handled_before = one["t"]
    for one in step.dead:
        line = Text("dead letter", style=FAILED)
        line.append(f"  {escaped(str(one.get('reason')))}  {ago(one['t'] - start)}", style="default")
        yield line
    if not step.handlings and not step.dead:
        yield Text("no end recorded", style="yellow")


def _handling(event: Event, start: int, ready: int | None) -> Text:
    """One line of a handling: what it was, its outcome, how long it took, and how long it waited before in the broker."""
    outcome = str(event.get("outcome", "ok"))
    line = Text()
    what = "callback" if event.get("reply") == "ok" else "callback, of a failure" if "reply" in event else "handled"
    line.append(f"{what} ")
    line.append(escaped(str(event.get("service"))))
    if (attempt := event.get("attempt", 1)) != 1:
        line.append(f", attempt {attempt}")
    line.append(f"  {escaped(outcome)}", style=STYLES.get(outcome, FAILED))
    line.append(f"  {ago(begun(event) - start)}", style="dim")
    line.append(f"  took {span(int(event.get('took_ms', 0) * 1000))}")
    if ready is not None and (waited := begun(event) - ready) >= 0:
        line.append(f", waited {span(waited)}")
    if "retry_in" in event:
        line.append(f"; again in {event['retry_in']} s")
    if event.get("redelivered"):
        line.append("; redelivered", style="yellow")
    error = event.get("error")
    if isinstance(error, list) and len(error) == 2:
        line.append(f"  {escaped(str(error[0]))}: {escaped(str(error[1]))}", style=STYLES.get(outcome, "red"))
    return line
