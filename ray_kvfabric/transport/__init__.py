"""How bytes travel: `base.py` is the contract, `registry.py` the choice, one module a transport."""
