"""What methods share: the step, families, terms, value heads, the catalog."""
