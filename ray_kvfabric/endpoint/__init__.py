"""The parts of one endpoint that `CacheManager` is made of: its caches, its links, its transfers."""
