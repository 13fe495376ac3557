"""``sleb keys``, ``--insecure`` and ``SLEB_API_KEY`` on the command line."""

import json
import os
import pwd
import sys
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest
import redis

from app.auth.keys import KeyFile, Quota, Scope
from app.cli.main import main
from app.config import ServeSettings, serve_settings
from tests.support.serving import serving

Sleb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def sleb(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Sleb:
    monkeypatch.setenv("SLEB_DATA_DIR", str(tmp_path))

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["sleb", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        written = capsys.readouterr()
        code = ended.value.code or 0
        assert isinstance(code, int)
        return code, written.out, " ".join(written.err.split())  # however it was wrapped

    return run


@pytest.fixture
def kolkata(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The time zone of this process, 5:30 hours ahead of UTC all year."""
    with monkeypatch.context() as zone:
        zone.setenv("TZ", "Asia/Kolkata")
        time.tzset()
        yield
    time.tzset()


def test_a_key_is_made_shown_once_listed_and_revoked(sleb: Sleb, tmp_path: Path) -> None:
    code, out, err = sleb("keys", "create", "alice", "--scope", "jobs", "--scope", "generate")
    key = out.strip()
    assert (code, "not shown again" in err, key in err) == (0, True, False)
    found = KeyFile(tmp_path / "keys.json").find(key)
    assert found is not None
    assert (found.name, set(found.scopes)) == ("alice", {Scope.JOBS, Scope.GENERATE})
    _, out, _ = sleb("keys", "create", "bob", "--scope", "admin", "--json")
    made = json.loads(out)
    assert (made["name"], made["scopes"], len(made["key"])) == ("bob", ["admin"], 48)
    _, listed, _ = sleb("keys", "list")
    assert "alice" in listed
    assert {"generate", "jobs", "admin"} <= set(listed.split())
    _, out, _ = sleb("keys", "list", "--json")
    assert [row["name"] for row in json.loads(out)] == ["alice", "bob"]
    assert not {key, made["key"], found.sha256} & set((listed + out).replace('"', " ").split())
    assert sleb("keys", "revoke", "alice")[0] == 0
    code, out, _ = sleb("keys", "revoke", "bob", "--json")
    assert (code, json.loads(out)) == (0, {"name": "bob", "revoked": True})
    assert KeyFile(tmp_path / "keys.json").known() == ()


def test_what_is_done_to_keys_is_in_the_audit_log(
    sleb: Sleb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "audit.jsonl"
    monkeypatch.setenv("SLEB_AUDIT_LOG", str(log))
    monkeypatch.setenv("LOGNAME", "somebody else")
    sleb(
        "keys",
        "create",
        "a",
        "--scope",
        "jobs",
        "--tenant",
        "team",
        "--until",
        "2099-01-31T00:00+0000",
    )
    sleb("keys", "rotate", "a", "--overlap", "2")
    sleb("keys", "list")
    sleb("keys", "revoke", "a")
    sleb("keys", "revoke", "a")  # noted, though there is none
    written = [json.loads(line) for line in log.read_text().splitlines()]
    assert {(line["event"], line["user"], line["name"]) for line in written} == {
        ("command", pwd.getpwuid(os.getuid()).pw_name, "a")
    }
    assert [line["command"] for line in written] == [
        "keys create", "keys rotate", "keys revoke", "keys revoke"
    ]  # fmt: skip
    made = {"scopes": ["jobs"], "tenant": "team", "expires_at": 4073500800.0}
    assert written[0].items() >= made.items()
    assert written[1]["overlap_h"] == 2
    assert "sleb_" not in log.read_text()


def test_a_key_is_not_changed_if_that_cannot_be_noted(
    sleb: Sleb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleb("keys", "create", "a", "--scope", "jobs")
    before = (tmp_path / "keys.json").read_bytes()
    monkeypatch.setenv("SLEB_AUDIT_LOG", str(tmp_path / "missing" / "audit.jsonl"))
    for command in (["create", "b", "--scope", "admin"], ["rotate", "a"], ["revoke", "a"]):
        code, _, err = sleb("keys", *command)
        assert (code, "cannot write the audit log" in err) == (1, True), command
    assert (tmp_path / "keys.json").read_bytes() == before


def test_a_key_may_have_limits_of_its_own(sleb: Sleb, tmp_path: Path) -> None:
    sleb("keys", "create", "a", "--scope", "jobs", "--rate", "60", "--concurrent", "0")
    sleb("keys", "create", "b", "--scope", "jobs")
    found = {each.name: each for each in KeyFile(tmp_path / "keys.json").known()}
    assert (found["a"].rate_per_min, found["a"].max_concurrent) == (60, 0)
    assert (found["b"].rate_per_min, found["b"].max_concurrent) == (None, None)
    listed = json.loads(sleb("keys", "list", "--json")[1])
    assert [(row["rate_per_min"], row["max_concurrent"]) for row in listed] == [
        (60, 0),
        (None, None),
    ]
    rows = [line.split() for line in sleb("keys", "list")[1].splitlines()]
    shown = {row[0]: row[2:5] for row in rows if row and row[0] in ("a", "b")}
    assert (shown["a"][:2], shown["b"][:2]) == (["60", "unlimited"], ["default", "default"])


def test_a_key_of_a_team_has_an_end_and_is_rotated(sleb: Sleb, tmp_path: Path) -> None:
    made = ("create", "a", "--scope", "jobs", "--tenant", "team", "--until", "2099-01-31")
    first = sleb("keys", *made)[1].strip()
    code, second, err = sleb("keys", "rotate", "a", "--overlap", "1.5")
    assert (code, "not shown again" in err) == (0, True)
    file = KeyFile(tmp_path / "keys.json")
    old, new = file.find(first), file.find(second.strip())
    assert old is not None
    assert new is not None
    assert (new.owner, new.expires_at) == ("team", datetime(2099, 1, 31).astimezone().timestamp())
    assert old.expires_at == pytest.approx(new.created_at + 5400)
    listed = json.loads(sleb("keys", "list", "--json")[1])
    assert [row["tenant"] for row in listed] == ["team", "team"]
    shown = sleb("keys", "list")[1]
    assert "2099-01-31 00:00" in " ".join(shown.split())
    assert json.loads(sleb("keys", "rotate", "a", "--json")[1])["scopes"] == ["jobs"]


@pytest.mark.usefixtures("kolkata")
def test_times_are_local_unless_a_zone_is_named(sleb: Sleb) -> None:
    ends = {"here": "2099-01-31", "utc": "2099-01-31T18:00Z", "west": "2099-01-31T18:00-0300"}
    for name, until in ends.items():
        sleb("keys", "create", name, "--scope", "jobs", "--until", until)
    rows = [line.split() for line in sleb("keys", "list")[1].splitlines()]
    shown = {row[0]: " ".join(row[-2:]) for row in rows if row and row[0] in ends}
    assert shown == {
        "here": "2099-01-31 00:00",
        "utc": "2099-01-31 23:30",
        "west": "2099-02-01 02:30",
    }
    listed = json.loads(sleb("keys", "list", "--json")[1])
    assert [row["expires_at"] % 86400 / 3600 for row in listed] == [18.5, 18, 21]


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("create", "a", "--scope", "jobs", "--until", "soon"), 2, "until"),
        (("rotate", "unknown"), 1, "no key named 'unknown'"),
        (("create", "a b", "--scope", "jobs"), 1, "letters, digits"),
        (("create", "a"), 2, "scope"),
        (("create", "a", "--scope", "root"), 2, "root"),
        (("create", "a", "--scope", "jobs", "--rate", "-1"), 2, "rate"),
        (("create", "a", "--scope", "jobs", "--rate", "100001"), 2, "rate"),
        (("create", "a", "--scope", "jobs", "--concurrent", "-1"), 2, "concurrent"),
        (("revoke", "unknown"), 1, "no key named 'unknown'"),
    ],
)
def test_wrong_use_is_told(
    sleb: Sleb, tmp_path: Path, arguments: tuple[str, ...], code: int, says: str
) -> None:
    ended, _, err = sleb("keys", *arguments)
    assert ended == code
    assert says in err
    assert not (tmp_path / "keys.json").exists()


@pytest.mark.parametrize("command", ["serve", "up"])
def test_a_service_for_others_needs_a_key(sleb: Sleb, command: str) -> None:
    code, _, err = sleb(command, "--host", "0.0.0.0")  # noqa: S104 - refused
    assert code == 1
    assert "sleb keys create" in err


def test_the_switch_is_a_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLEB_INSECURE", "true")
    assert serve_settings(insecure=None).insecure
    monkeypatch.delenv("SLEB_INSECURE")
    assert not serve_settings(insecure=None).insecure
    assert serve_settings(insecure=True).insecure


def test_the_jobs_command_sends_the_key_of_its_environment(
    sleb: Sleb,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    redis_url: str,
    redis_client: redis.Redis,
) -> None:
    redis_client.ping()
    key = KeyFile(tmp_path / "keys.json").create("me", [Scope.JOBS])
    with serving(ServeSettings(data_dir=tmp_path, drain_s=0), redis_url) as (_, url):
        code, _, err = sleb("jobs", "list", "--url", url)
        assert (code, "SLEB_API_KEY" in err) == (1, True)
        monkeypatch.setenv("SLEB_API_KEY", key)
        code, out, _ = sleb("jobs", "list", "--url", url, "--json")
        assert (code, json.loads(out)) == (0, [])


def test_a_key_is_not_shown_with_the_settings() -> None:
    assert "sleb_secret" not in repr(ServeSettings(api_key="sleb_secret"))
    with pytest.raises(ValueError, match="api_key") as refused:
        ServeSettings(api_key="sleb_secret\r\nX: y")
    assert "sleb_secret" not in str(refused.value)


def test_without_keys_it_says_how_to_create_one(sleb: Sleb) -> None:
    assert sleb("keys", "list") == (
        0,
        "no keys: create one with sleb keys create NAME --scope SCOPE\n",
        "",
    )
    assert sleb("keys", "list", "--json")[1].strip() == "[]"


def test_a_tenant_has_a_quota(sleb: Sleb, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert sleb("keys", "quota", "team", "--queued", "3")[0] == 1  # there are no keys
    sleb("keys", "create", "a", "--scope", "jobs", "--tenant", "team")
    set_ = ("keys", "quota", "team", "--queued", "3", "--running", "0", "--checkpoints", "10GB")
    monkeypatch.setenv("SLEB_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    assert sleb(*set_)[0] == 0
    monkeypatch.delenv("SLEB_AUDIT_LOG")
    noted = json.loads((tmp_path / "audit.jsonl").read_text())
    assert (noted["command"], noted["name"]) == ("keys quota", "team")
    assert (noted["queued_jobs"], noted["checkpoint_bytes"]) == (3, 10**10)
    assert KeyFile(tmp_path / "keys.json").quotas() == {"team": Quota(3, 0, 10**10)}
    rows = [line.split() for line in sleb("keys", "quota", "team")[1].splitlines()]
    assert ["team", "3", "unlimited", "10.0GB"] in [row[:4] for row in rows]
    assert "team" in sleb("keys", "list")[1].split("queued jobs")[1]
    [row] = json.loads(sleb("keys", "list", "--json")[1])
    assert row["quota"]["queued_jobs"] == 3
    sleb("keys", "quota", "team", "--queued", "4", "--tokens", "900", "--json")
    found = json.loads(sleb("keys", "quota", "team", "--json")[1])
    assert (found["tenant"], found["queued_jobs"], found["running_jobs"]) == ("team", 4, 0)
    assert (found["checkpoint_bytes"], found["tokens_per_min"]) == (10**10, 900)
    _, out, err = sleb("keys", "quota", "tema", "--reset", "--json")
    assert (json.loads(out)["queued_jobs"], err) == (None, "")
    assert "tenant 'tema' has no keys" in sleb("keys", "quota", "tema")[2]
    sleb("keys", "quota", "team", "--reset")
    assert KeyFile(tmp_path / "keys.json").quotas() == {}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--queued", "-1"), "queued"),
        (("--checkpoints", "much"), "is not a size"),
        (("--checkpoints", "-1"), "is not a size"),
    ],
)
def test_a_wrong_quota_is_told(
    sleb: Sleb, tmp_path: Path, arguments: tuple[str, ...], says: str
) -> None:
    sleb("keys", "create", "a", "--scope", "jobs")
    before = (tmp_path / "keys.json").read_bytes()
    code, _, err = sleb("keys", "quota", "a", *arguments)
    assert (code, says in err) == (2, True)
    assert (tmp_path / "keys.json").read_bytes() == before


def test_the_list_of_keys_has_whole_end_dates_at_80_columns(
    sleb: Sleb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    scopes = ("--scope", "generate", "--scope", "jobs")
    sleb("keys", "create", "carol", *scopes, "--tenant", "research", "--until", "2130-01-31")
    lines = sleb("keys", "list")[1].splitlines()
    assert max(map(len, lines)) <= 80
    assert any(line.rstrip().endswith("2130-01-31 00:00") for line in lines)
    [row] = [line.split() for line in lines if "carol" in line]
    assert row == ["carol", "research", "generate", "default", "default", *row[5:]]
