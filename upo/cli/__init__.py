"""The command line of `upo.fit`: parser, short errors, stages; and what turns a function into a command."""
