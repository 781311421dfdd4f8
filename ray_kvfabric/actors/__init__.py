"""The Ray shells around pure parts. Ray's exceptions are translated here and do not leave this folder."""
