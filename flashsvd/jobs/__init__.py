"""Where work runs: worker processes that own the models and the GPU. Nothing here imports torch."""

from flashsvd.jobs.service import JobService
from flashsvd.jobs.status import JobStatus, QueuedJob

__all__ = ["JobService", "JobStatus", "QueuedJob"]
