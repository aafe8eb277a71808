"""A rest for Ray Data's executor, which has none while training is slower than decoding.

Ray 2.60 waits for running tasks; but a task whose finished block nobody may take yet counts as
ready, so the loop then turns without a pause and burns a core that the training could have used.
"""

import time

from ray.data._internal.execution.execution_callback import ExecutionCallback

REST_S = 0.02
"""A block is worth seconds of training: it may wait so long."""


class ExecutorRest(ExecutionCallback):
    """Sleeps a little in every turn of the loop."""

    def on_execution_step(self, executor: object) -> None:
        time.sleep(REST_S)
