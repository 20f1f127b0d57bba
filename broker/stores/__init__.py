"""Where the outcomes of idempotent services are kept.

In comes a message's identity, out comes the claim on it or the outcome that is kept. `interface.py` is what handling knows; memory, SQLite,
PostgreSQL and Redis meet it, `factory.py` chooses.
"""
