"""Names and lifetimes of all Redis keys but those of RQ.

    key                     value                                    lifetime
    sleb:job:{id}           hash: the record                         permanent
    sleb:job:{id}:events    stream: the last 1000 events             permanent
    sleb:job:{id}:search    hash: the state of the search            permanent
    sleb:job:{id}:messages  hash: undelivered webhook messages       until delivered or given up
    sleb:job:{id}:told      list: the last 100 delivery attempts     permanent
    sleb:jobs               zset: all ids, in order of creation      permanent
    sleb:jobs:{status}      zset: the ids in that status, likewise   permanent
    sleb:jobs:limits        hash: most running jobs, by tenant       permanent
    sleb:outbox             zset: ids of all messages, by due time   as the messages
    sleb:sink:{sink}        zset: ids of jobs to send there, by due time  until sent
    sleb:sink:{sink}:withdrawn  zset: checkpoints that must not be there, until when  an hour
    sleb:idempotency:{key}  string: a request's digest and its job   24 h; 30 s without a job
    sleb:key:{name}:recent  zset: request ids of an API key, by time 60 s
    sleb:key:{name}:running zset: its generations, by end of lease   30 s
    sleb:tenant:{name}      hash: its tokens, by second              60 s

Permanent means until the job is deleted. Keys of RQ begin with ``rq:``, see ``queue.py``.
"""

RECORD = "sleb:job:{id}"
EVENTS = "sleb:job:{id}:events"
SEARCH = "sleb:job:{id}:search"
MESSAGES = "sleb:job:{id}:messages"
ATTEMPTS = "sleb:job:{id}:told"
OUTBOX = "sleb:outbox"
SINK = "sleb:sink:{sink}"
WITHDRAWN = "sleb:sink:{sink}:withdrawn"
INDEX = "sleb:jobs"
STATUS_INDEX = "sleb:jobs:{status}"
RUNNING_LIMITS = "sleb:jobs:limits"
KEY_RECENT = "sleb:key:{name}:recent"
KEY_RUNNING = "sleb:key:{name}:running"
TENANT_TOKENS = "sleb:tenant:{name}"
IDEMPOTENCY = "sleb:idempotency:{key}"  # {key} is a sha256, as a key may be any text
KEYS_OF_A_JOB = (MESSAGES, RECORD, EVENTS, SEARCH, ATTEMPTS)  # deleted with the job
