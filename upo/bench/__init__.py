"""`python -m upo.bench`: this package against TRL and against the machine's own limit, in one run."""
