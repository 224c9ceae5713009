"""Measure one checkpoint: sample every problem, grade every answer, estimate Pass@k and the generalization loss."""
