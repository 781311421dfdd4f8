"""The demo: a small Llama in numpy whose K and V live in paged caches, and the runs that push them."""
