"""Replicas: the newest version of a log, in this process, with numpy alone.

replica   Replica: one state, moved by whole versions only
facts     what it tells about itself
follow    the thread that keeps it fresh
undo      what it takes to go back, in bounded memory
lock      many readers or one writer
cache     what survives a restart, in a local directory
"""

from evergrad.replica.facts import Applied, ReplicaStats
from evergrad.replica.replica import Replica

__all__ = ["Applied", "Replica", "ReplicaStats"]
