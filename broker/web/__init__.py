"""The page: what became of an invocation, and what to do about it, in a browser.

    the stream ─→ follower ─→ the index (SQLite) and the last minute ─→ board, once a second ─→ pages, live and as JSON
    dead letters ─→ looked through when somebody looks at them ─→ pages ─→ jobs: replay, drop

Needs the extra `web`, and is imported by `ackback web` alone.
"""
