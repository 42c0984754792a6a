"""Undocumented names of procrastinate."""

from procrastinate.connector import BaseConnector, Notify
from procrastinate.job_context import AbortReason
from procrastinate.worker import Worker

__all__ = ["AbortReason", "BaseConnector", "Notify", "Worker"]
