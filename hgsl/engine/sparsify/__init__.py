"""Ticket search: Continuous Sparsification as a sequence of training stages."""
