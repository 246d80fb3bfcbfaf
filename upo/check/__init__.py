"""A run before it is started: does everything fit together, what will it do, how much memory does it need."""
