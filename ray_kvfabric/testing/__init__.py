"""For authors of transports: the conformance suite, endpoints without Ray, seeded faults by wrapping. Needs pytest."""
