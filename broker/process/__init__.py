"""Processes that host services.

In come the registry and the signals, out comes an exit code. `daemon.py` keeps a connection and what is consumed on it, `worker.py` is a
process around a daemon, `supervisor.py` the parent of several.
"""
