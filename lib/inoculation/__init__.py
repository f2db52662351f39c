"""The apparatus behind the notebooks, in reading order.

store (where things lie, run folders, whole stages) -> settings (data/*.yaml, strictly read) -> render (explicit chat text) ->
runs (specs, keys, plan, worker process) -> model, evaluate (inside the worker, the only modules that load torch) -> score ->
worker -> tables -> judge (LLM judges through inspect-ai) -> stats (the seed is the unit) -> effects (index, 2×2, contrasts) ->
claims (verdicts and their trail) -> figures; the command line (`python -m inoculation`) comes last. Imports point one way.
Beside it lie `sandbox`, which runs model-written code and knows no experiment, and `engines`, which has runs done elsewhere.
"""
