"""Every error a user can cause or meet.

AmgError
├── ConfigError      a setting, an argument or a config file is wrong           exit status 2
├── OutputRefused    the output folder belongs to another job                   exit status 2
├── WeightsError     a checkpoint is missing, foreign, truncated or altered
├── UnfinishedError  an output lacks rows that the command needs
├── SourceError      an input cannot be listed or read at all
├── StorageError     a store refuses to list, read or write
├── WorkerError      processes that label ended again and again
├── ClusterError     a Ray cluster cannot be reached, or does not take a job
└── FormatError      a shard is not what `docs/format.md` says
"""

from __future__ import annotations


class AmgError(Exception):
    """The user's fault or the world's; its text says what came, what was wanted and what to do."""

    exit_status = 1


class ConfigError(AmgError):
    exit_status = 2


class OutputRefused(AmgError):
    exit_status = 2


class WeightsError(AmgError):
    pass


class UnfinishedError(AmgError):
    pass


class SourceError(AmgError):
    pass


class StorageError(AmgError):
    pass


class WorkerError(AmgError):
    pass


class ClusterError(AmgError):
    pass


class FormatError(AmgError):
    pass
