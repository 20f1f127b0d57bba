"""What is kept beyond a process: the outcomes of idempotent services, and the journals of durable ones.

`interface.py` is what handling knows; memory, SQLite, PostgreSQL and Redis meet it, `factory.py` chooses. `batches.py` has what many ask
for at once share a transaction.
"""
