"""The native module's place, for programs that import it. There is nothing in it (contract section 18)."""
