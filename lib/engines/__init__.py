"""Runs on many machines over one run store, in reading order: checks, task, cluster, batch, command.

A run that is sent elsewhere is the same worker process (inoculation.runs.Worker) with fewer specs. The run store is the only
ledger: any engine goes on where another one stopped.
"""
