"""For authors of transports: the conformance suite, endpoints without Ray, faults by wrapping. Needs pytest."""
