"""The command line: one file per command. Arguments, messages and exit codes; no mathematics."""
