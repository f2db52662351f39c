"""Your own fine-tuning data and training prompt under the controls that CC asks for; the modules are, \
in reading order: files, rows, checks, patterns, answers, form, controls, reword, hub, material, specs, plan, worker, effects, \
advice, report, command.
"""
