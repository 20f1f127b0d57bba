"""Handlers that outlive their process: run again from the top with the answers that are journalled, they ask the same questions.

    entries of the journal ─→ Run ─→ DurableLoop: the handler, until all of it waits ─→ new questions

`loop.py` is the event loop that a handler runs on, `run.py` feeds it with answers and notes what it asks, `journal.py` is what is kept of
that, `context.py` what the service's author calls. Nothing here waits, stores or sends: `handling/runs.py` does.
"""
