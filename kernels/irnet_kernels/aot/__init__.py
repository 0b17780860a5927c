"""Kernels without a GPU. Nothing here is needed to run an operator, and no operator imports it."""
