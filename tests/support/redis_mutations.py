"""Keys of Redis as somebody with write access could leave them."""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import redis

from tests.support.mutations import VALUES, changed

MEMBERS = (
    b"",
    b"x",
    b"\xff\xfe",
    b"\0",
    b"a" * 70_000,
    b"prn-0000000000000000000",
    b"../x",
    b"a:b",
)
SCORES = (0, -1, 1e308, float("inf"), float("-inf"))


@contextmanager
def one_changed(client: redis.Redis, keys: Sequence[bytes], seed: int) -> Iterator[bytes]:
    """One of the keys differs meanwhile; yields its name. All is as before in the end."""
    choose = random.Random(seed)
    key = choose.choice(keys)
    before: dict[bytes, Any] = {name: client.dump(name) for name in client.scan_iter()}
    _change(client, key, choose)
    try:
        yield key
    finally:
        client.flushdb()
        for name, dump in before.items():
            client.restore(name, 0, dump)


def written(value: object) -> bytes:
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode(errors="surrogatepass")


def _change(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    kind: Any = client.type(key)
    if choose.random() < 0.05:
        client.delete(key)
        kind = choose.choice([*_CHANGES])
    _CHANGES[kind](client, key, choose)


def _hash(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    fields: Any = client.hgetall(key) or {b"a": b"b"}
    name = choose.choice([*fields])
    match choose.randrange(4):
        case 0:
            client.hset(key, choose.choice(MEMBERS), written(choose.choice(VALUES)))
        case 1:
            client.hdel(key, name)
        case 2 if (inside := _inside(fields[name], choose)) is not None:
            client.hset(key, name, inside)
        case _:
            client.hset(key, name, choose.choice((b"\xff", written(choose.choice(VALUES)))))


def _inside(value: bytes, choose: random.Random) -> bytes | None:
    """The JSON of a field, changed at some place."""
    with suppress(ValueError):
        found = json.loads(value)
        if isinstance(found, dict | list):
            return written(changed(found, choose))
    return None


def _sorted_set(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    members: Any = client.zrange(key, 0, -1)
    if members and choose.random() < 0.2:
        client.zrem(key, choose.choice(members))
    member = choose.choice([*MEMBERS, *members])
    client.zadd(key, {member: choose.choice(SCORES)})


def _stream(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    entries: Any = client.xrevrange(key, count=1) or [(b"0-1", {b"a": b"b"})]
    fields: dict[Any, Any] = dict(entries[0][1])
    for name in choose.sample([*fields], choose.randrange(1, len(fields) + 1)):
        if choose.random() < 0.5:
            fields[name] = choose.choice((b"\xff", written(choose.choice(VALUES))))
        elif len(fields) > 1:
            del fields[name]
    client.xadd(key, fields)


def _list(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    members: Any = client.lrange(key, 0, -1)
    inside = _inside(members[0], choose) if members else None
    client.lpush(key, inside if inside and choose.random() < 0.5 else choose.choice(MEMBERS))


def _set(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    client.sadd(key, choose.choice(MEMBERS))


def _string(client: redis.Redis, key: bytes, choose: random.Random) -> None:
    client.set(key, choose.choice((*MEMBERS, written(choose.choice(VALUES)))))


_CHANGES: Mapping[bytes, Callable[[redis.Redis, bytes, random.Random], None]] = {
    b"hash": _hash,
    b"zset": _sorted_set,
    b"stream": _stream,
    b"list": _list,
    b"set": _set,
    b"string": _string,
}
