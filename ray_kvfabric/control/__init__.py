"""Who decides: directory, leases, errands. Pure: no ray, torch, clock, thread; time is in the event."""
