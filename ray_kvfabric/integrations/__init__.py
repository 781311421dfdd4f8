"""The fabric under other programs' interfaces. Nothing below this floor knows them."""
