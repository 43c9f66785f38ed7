"""Which call is sent next, and to which pool: fair queues and the scheduler, without Ray."""
