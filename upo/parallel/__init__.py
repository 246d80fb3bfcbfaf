"""Models in shards over several devices."""
