"""Side effects of a run: its folder, its curves, random states, a graceful stop."""
