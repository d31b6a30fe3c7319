"""What each command does, one file a command; `u2a.cli` only wires flags to these."""
