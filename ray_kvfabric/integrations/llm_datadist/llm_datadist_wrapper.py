"""The native module's place, for programs that import it. There is no native engine behind it (contract section 18)."""

kSuccess = 0
