"""Names of the keys in Redis that jobs have, and how long they live.

    key                     holds                                    lifetime
    sleb:job:{id}           hash: one record                         permanent
    sleb:job:{id}:events    stream: what happened, the last 1000     permanent
    sleb:job:{id}:search    hash: what its search has found so far   until the job has ended
    sleb:job:{id}:messages  hash: what its webhook is to be told     until told, or given up
    sleb:job:{id}:told      list: the last 100 tries to tell it      permanent
    sleb:jobs               zset: all ids, in order of creation      permanent
    sleb:jobs:{status}      zset: the ids in that status, likewise   permanent
    sleb:outbox             zset: ids of all messages, by when due   as the messages
    sleb:idempotency:{key}  string: a request's digest and its job   24 h; 30 s without a job

The keys of RQ begin with ``rq:``; ``queue.py`` says which of them stay.
"""

RECORD = "sleb:job:{id}"
EVENTS = "sleb:job:{id}:events"
SEARCH = "sleb:job:{id}:search"
MESSAGES = "sleb:job:{id}:messages"
TOLD = "sleb:job:{id}:told"
OUTBOX = "sleb:outbox"
INDEX = "sleb:jobs"
STATUS_INDEX = "sleb:jobs:{status}"
IDEMPOTENCY = "sleb:idempotency:{key}"  # its digest: a key may be any text
OF_ONE_JOB = (MESSAGES, RECORD, EVENTS, SEARCH, TOLD)  # what goes when it is deleted
PERMANENT_KEYS = ("sleb:job:*", "sleb:jobs", "sleb:jobs:*", "sleb:outbox")
