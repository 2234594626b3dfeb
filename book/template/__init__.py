"""What ``book new-section`` copies: a section that already keeps the contract, to be rewritten piece by piece."""
