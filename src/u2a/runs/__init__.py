"""The run folder of a command: its files, its lock, its costs and the versions it was made with."""
