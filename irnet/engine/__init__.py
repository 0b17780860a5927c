"""Runs: training, evaluation, prediction and their checkpoints. What a model computes is not decided here."""
