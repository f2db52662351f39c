"""The apparatus behind the notebooks, in reading order.

paths, settings (data/*.yaml, strictly read) -> render (explicit chat text) -> store (run folders, stage keys) ->
runs (plan, worker process) -> model, train, evaluate (inside the worker, the only modules that load torch) -> score ->
tables -> figures; doctor and the command line (`python -m inoculation`) stand beside them. Imports point one way only.
"""
