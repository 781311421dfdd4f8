"""The command `kvfabric`; each subcommand is a module that is imported when it is asked for."""
