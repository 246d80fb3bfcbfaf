"""Mathematics that methods share: tensors in, unreduced tensors out."""
