"""What a task is, the 27 known ones, and the plans that say which are trained together."""

from usfm.tasks.task import TYPES, Task

__all__ = ["TYPES", "Task"]
