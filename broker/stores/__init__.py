"""Where idempotent services keep their outcomes: each module a kind of store (see `broker.idempotency.Store`)."""
