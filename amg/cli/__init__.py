"""The command `sam-amg`: parse, call, print."""
