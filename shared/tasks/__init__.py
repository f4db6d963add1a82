"""Tasks: what a teacher's network does, and so all that is not pixels.

``descriptions`` says which tasks there are and what they measure, without torch; ``base`` is what the code that
computes asks for; one module for each task answers. Specs, shards, evaluation, charts, tables and pages name no
task: they ask.
"""

from shared.tasks.descriptions import TASK_NAMES, Metric, TaskDescription, describe_task, task_of

__all__ = ["TASK_NAMES", "Metric", "TaskDescription", "describe_task", "task_of"]
