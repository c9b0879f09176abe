"""The gateway's spool: events wait on this disk until the log, which may be away, has them.

The gateway acknowledges what stands in the spool (store.py: files of frames, segments.py); the forwarder (forwarder.py) carries it to
the log in order and drops it here once the log has it. Nothing is lost. An event may be carried twice, and readers drop doubles:
after a crash between the two, and when the log's answer was lost so that nobody knows. What is known to be there is not sent again.
"""

from inference.spool.forwarder import Forwarder
from inference.spool.store import Extent, Spool

__all__ = ["Extent", "Forwarder", "Spool"]
