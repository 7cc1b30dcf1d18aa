"""Manifest, splits, labels, cache, sampler: from what people have to batches."""
