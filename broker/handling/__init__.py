"""A delivery's way to its acknowledgement.

In come deliveries from the transport; out go, confirmed, the reply, what the handler has invoked, or the dead letter, and then the
acknowledgement.
"""
