"""RQ's queue, made for jobs of hours: in the order of their priorities, and soon free again.

RQ delivers in the order of its list. Here a worker takes the best of the list instead, in one
atomic step, by what the records say: so no crash on the way can put it into the wrong order.
"""

from datetime import timedelta
from typing import Any

import redis
from rq import Queue
from rq.exceptions import DequeueTimeout
from rq.intermediate_queue import IntermediateQueue
from rq.utils import now

from pruning.jobs.keys import RECORD

LEASE_S = 15

# KEYS the queue, and where a job lies until it is leased. ARGV what a record's key begins with.
# The best has the highest priority, then was worked on before, then is the oldest: ids tell that.
_TAKE = """
local best, best_priority, best_is_behind
for _, id in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do
  local found = redis.call('HMGET', ARGV[1] .. id, 'priority', 'in_front')
  local priority, is_behind = tonumber(found[1] or 0) or 0, (found[2] or '') == '' and 1 or 0
  local is_better = not best or priority > best_priority
  if best and priority == best_priority then
    is_better = is_behind < best_is_behind or (is_behind == best_is_behind and id < best)
  end
  if is_better then best, best_priority, best_is_behind = id, priority, is_behind end
end
if best then
  redis.call('LREM', KEYS[1], 1, best)
  redis.call('RPUSH', KEYS[2], best)
end
return best
"""


class _TakenQueue(IntermediateQueue):
    """Jobs that were taken off the queue but are not leased yet: for milliseconds, as a rule."""

    lease_s = LEASE_S

    def should_be_cleaned_up(self, job_id: str) -> bool:
        first_seen = self.get_first_seen(job_id)
        return first_seen is not None and now() - first_seen > timedelta(seconds=self.lease_s)

    def remove(self, job_id: str) -> None:
        super().remove(job_id)
        self.connection.delete(self.get_first_seen_key(job_id))


class LeasedQueue(Queue):
    """No death of its caretaker stalls it for longer than a lease."""

    lease_s = LEASE_S

    @classmethod
    def lmove(cls, connection: redis.Redis, queue_key: str, timeout: int | None) -> Any:  # noqa: ANN401 - as in RQ
        """The queue's key and the id of its best job, taken; None if it is empty.

        With a ``timeout`` in seconds it waits for one, and raises ``DequeueTimeout``.
        """
        # from an end of the list to the same end moves nothing, but waits
        if timeout is not None and not connection.blmove(
            queue_key, queue_key, timeout, "LEFT", "LEFT"
        ):
            raise DequeueTimeout(timeout, queue_key)
        keys = [queue_key, IntermediateQueue.get_intermediate_queue_key(queue_key)]
        taken = connection.register_script(_TAKE)(keys=keys, args=[RECORD.format(id="")])
        if taken is None and timeout is not None:  # another worker was faster
            raise DequeueTimeout(timeout, queue_key)
        return None if taken is None else (queue_key, taken)

    def acquire_maintenance_lock(self) -> bool:
        return bool(self.connection.set(self.registry_cleaning_key, 1, nx=True, ex=self.lease_s))

    @property
    def intermediate_queue(self) -> IntermediateQueue:
        taken = _TakenQueue(self.key, connection=self.connection)
        taken.lease_s = self.lease_s
        return taken
