"""The one loop, its checkpoints and logs, and the evaluator."""
