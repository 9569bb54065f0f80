"""Workers side by side in one process, one for each class of jobs; they stop together."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from service.jobs.worker import Worker


class WorkerPool:
    """Runs workers, each in a thread, until they are told to stop or one fails."""

    def __init__(self, workers: Sequence[Worker]) -> None:
        self._workers = workers
        self._failure: BaseException | None = None

    def stop(self) -> None:
        """Make `run` return soon; running jobs go back to the queue. For signal handlers."""
        for worker in self._workers:
            worker.stop()

    def run(self) -> None:
        """Run jobs until `stop` is called; raises what a worker raised, once all have stopped."""
        threads = [
            threading.Thread(target=self._run, args=(worker,), name=f"worker-{number}")
            for number, worker in enumerate(self._workers)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self._failure is not None:
            raise self._failure

    def _run(self, worker: Worker) -> None:
        try:
            worker.run()
        except Exception as error:
            self._failure = self._failure or error
        finally:
            self.stop()
