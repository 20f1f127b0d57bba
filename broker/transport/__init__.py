"""Messages between this process and a broker.

In come `Publishing`s and the queues to consume; out go deliveries, each to be acknowledged or given back, and a future for each confirm.
`interface.py` is what the rest of the code knows; `memory.py`, `amqp.py` and `lane.py` are the three that meet it, `factory.py` chooses.
"""
