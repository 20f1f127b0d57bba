"""`ackback trace`, `events` and `top`: what the flight recorder has."""
