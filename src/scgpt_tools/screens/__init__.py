"""Perturbation screens: conditions, pairs, splits, rankings, minibatches and held-out evaluation."""
