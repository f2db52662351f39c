"""Narrow or general (NEM), in reading order: plan, weights, train, measure, worker, tables, contrasts, figures.

A package of its own beside `inoculation`, which it builds on and which knows nothing of it but its worker and its notebook.
"""
