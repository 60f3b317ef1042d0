"""The sample site that `scripts/serve` shows."""
