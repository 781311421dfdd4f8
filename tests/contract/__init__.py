"""What LLM-DataDist does and we do as well: one test a rule, on the native names and on the drop-in package."""
