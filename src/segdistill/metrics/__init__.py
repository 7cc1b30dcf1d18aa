"""Per-image scores -> table -> summary with confidence intervals."""
