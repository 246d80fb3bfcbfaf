"""From files to batches: records, sources, tokens, layouts, samplers."""
