"""The wire in plain values and pure functions.

In come messages and what happened to them, out come the messages that follow: replies, dead letters, copies, waits. Nothing here reads,
writes, waits or looks at a clock.
"""
