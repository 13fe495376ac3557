"""A program that takes vLLM's command line and speaks its routes, without a model.

Its tokens are the previous one plus one. As vLLM does, it has a process of its own for the engine,
ends with it, and keeps connections open. Options that begin with ``--test-`` make it behave badly.
"""

import argparse
import json
import os
import socketserver
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokenizers import Tokenizer

_WARNING = (
    "(APIServer pid=7) WARNING 11-29 21:27:47 [system_utils.py:255] This can cause fd limit errors "
    "like `OSError: [Errno 24] Too many open files`. Consider increasing with ulimit -n"
)

if TYPE_CHECKING:  # the program itself starts without it
    from app.config import ServeSettings


def write_program(path: Path) -> Path:
    """An executable file that runs this module."""
    root = Path(__file__).parents[2]
    lines: tuple[str, ...] = (
        f"#!{sys.executable}",
        "import sys",
        f"sys.path.insert(0, {str(root)!r})",
    )
    lines += ("from tests.support.vllm_program import main", "main()")
    path.write_text("\n".join(lines) + "\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def run_by(
    settings: "ServeSettings", folder: Path, arguments: str, **changes: object
) -> "ServeSettings":
    """The settings with the program, in this folder and with these arguments, as the engine."""
    program = {"vllm": write_program(folder / "program"), "vllm_args": arguments}
    return settings.model_copy(update={"engine": "vllm", **program, **changes})


def main() -> None:
    if sys.argv[1:] == ["--version"]:
        sys.stdout.write("0.32.0\n")
        return
    options = _options(sys.argv[1:])
    engine = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
    sys.stderr.write(f"{_WARNING}\n")
    if options.test_hang:
        threading.Event().wait()
    if options.test_refuse:
        raise ValueError(options.test_refuse)
    config = json.loads((options.model / "config.json").read_text())
    with _Server(options, config, engine) as server:
        if options.test_notes:
            (options.test_notes / str(os.getpid())).touch()
        threading.Thread(target=_end_with_engine, args=(server,), daemon=True).start()
        server.serve_forever()
    engine.kill()


def _end_with_engine(server: "_Server") -> None:
    """Soon after it: requests are answered with errors until then."""
    server.engine.wait()
    threading.Event().wait(server.options.test_outlives_s)
    server.shutdown()


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["serve"])
    parser.add_argument("model", type=Path)
    parser.add_argument("--uds")
    parser.add_argument("--served-model-name")
    parser.add_argument("--max-model-len", type=int)
    parser.add_argument("--enable-auto-tool-choice", action="store_true")
    parser.add_argument("--test-hang", action="store_true")
    parser.add_argument("--test-refuse")
    parser.add_argument("--test-version", default="0.32.0")
    parser.add_argument("--test-token-s", type=float, default=0.0)
    parser.add_argument("--test-outlives-s", type=float, default=0.0)
    parser.add_argument("--test-notes", type=Path)
    parser.add_argument("--test-log", type=Path)
    return parser.parse_known_args(arguments)[0]


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(
        self,
        options: argparse.Namespace,
        config: dict[str, Any],
        engine: "subprocess.Popen[bytes]",
    ) -> None:
        super().__init__(options.uds, _Handler)
        self.options = options
        self.engine = engine
        self.vocab_size: int = config["vocab_size"]
        self.max_len: int = options.max_model_len or config["max_position_embeddings"]
        self.tokenizer = Tokenizer.from_file(str(options.model / "tokenizer.json"))
        self.key = os.environ["VLLM_API_KEY"]  # noqa: TID251 - not a program of ours

    @property
    def is_dead(self) -> bool:
        return self.engine.poll() is not None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        pass

    def do_GET(self) -> None:
        if self.path == "/version":
            self._json(200, {"version": self.server.options.test_version})
        elif self.path == "/health":
            self._json(503 if self.server.is_dead else 200, {})
        elif self._is_allowed():
            name, max_len = self.server.options.served_model_name, self.server.max_len
            self._json(200, {"data": [{"id": name, "max_model_len": max_len}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        chunks = {"/v1/completions": _chunks, "/v1/chat/completions": _chat_chunks}.get(self.path)
        if chunks is None:
            self._json(404, {"error": {"message": "no such route"}})
        elif self._is_allowed():
            self._note(body)
            self._complete(body, chunks(body, self.server))

    def _note(self, body: dict[str, Any]) -> None:
        """Append the request to the log, as a line of JSON."""
        if (log := self.server.options.test_log) is not None:
            with log.open("a") as file:
                file.write(json.dumps(body) + "\n")

    def _is_allowed(self) -> bool:
        if self.headers["authorization"] != f"Bearer {self.server.key}":
            self._json(401, {"error": "Unauthorized"})
            return False
        return True

    def _complete(self, body: dict[str, Any], chunks: Iterator[dict[str, Any]]) -> None:
        if not body.get("stream"):
            *_, last = chunks
            self._json(200, {"choices": [], "usage": last["usage"]})
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for chunk in chunks:
            if self.server.is_dead:
                self._event(json.dumps({"error": {"message": "the engine died", "code": 500}}))
                break
            self._event(json.dumps(chunk))
            threading.Event().wait(self.server.options.test_token_s)
        self._event("[DONE]")
        self.wfile.write(b"0\r\n\r\n")

    def _event(self, data: str) -> None:
        event = f"data: {data}\n\n".encode()
        self.wfile.write(b"%x\r\n%b\r\n" % (len(event), event))

    def _json(self, status: int, content: object) -> None:
        text = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def _chunks(body: dict[str, Any], server: _Server) -> Iterator[dict[str, Any]]:
    prompt, limit = body["prompt"], body["max_tokens"]
    assert isinstance(prompt[0], int), "expected token ids"
    spoken, ids = "", [(prompt[-1] + step) % server.vocab_size for step in range(1, limit + 1)]
    for at, token_id in enumerate(ids):
        text = server.tokenizer.decode(ids[: at + 1], skip_special_tokens=False)
        stopped = next((stop for stop in body.get("stop", ()) if stop in text), None)
        if stopped is not None:
            text = text[: text.index(stopped)]
        ends = at == limit - 1 or stopped is not None
        choice = {
            "index": 0,
            "text": text[len(spoken) :],
            "logprobs": _logprobs(body, prompt if at == 0 and body.get("echo") else [], token_id),
            "finish_reason": ("length" if stopped is None else "stop") if ends else None,
            "stop_reason": stopped,
            "prompt_token_ids": prompt if at == 0 else None,
            "token_ids": [token_id],
        }
        yield {"choices": [choice], "usage": None}
        spoken = text
        if ends:
            break
    details = {"cached_tokens": 0}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": at + 1}
    yield {"choices": [], "usage": usage | {"prompt_tokens_details": details}}


def _chat_chunks(body: dict[str, Any], server: _Server) -> Iterator[dict[str, Any]]:
    """A word, and a call of the first tool if the last message has "call" in it."""
    assert server.options.enable_auto_tool_choice
    assert body["tool_choice"] == "auto"
    prompt = body["kv_transfer_params"]["prompt_token_ids"]
    deltas: list[dict[str, Any]] = [{"content": "well"}]
    if is_call := "call" in body["messages"][-1]["content"]:
        name = body["tools"][0]["function"]["name"]
        deltas += [_call({"name": name, "arguments": ""}) | {"id": "call_7", "type": "function"}]
        deltas += [_call({"arguments": part}) for part in ('{"days":', " 3}")]
        deltas[1:] = [{"tool_calls": [part]} for part in deltas[1:]]
    is_cut = len(deltas) > body["max_tokens"]
    deltas = deltas[: body["max_tokens"]]
    yield {"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}], "usage": None}
    for at, delta in enumerate(deltas):
        token_id = (prompt[-1] + at + 1) % server.vocab_size
        choice: dict[str, Any] = {"index": 0, "delta": delta, "token_ids": [token_id]}
        if body.get("logprobs"):
            choice["logprobs"] = {"content": [_chat_logprob(token_id)]}
        if at == len(deltas) - 1:
            choice["finish_reason"] = "length" if is_cut else "tool_calls" if is_call else "stop"
        yield {"choices": [choice], "usage": None}
    usage = {"prompt_tokens": len(prompt), "completion_tokens": len(deltas)}
    yield {"choices": [], "usage": usage}


def _call(function: dict[str, str]) -> dict[str, Any]:
    return {"index": 0, "function": function}


def _chat_logprob(token_id: int) -> dict[str, Any]:
    top = {"token": "token_id:1", "logprob": -0.1}
    return {"token": f"token_id:{token_id}", "logprob": -token_id / 10, "top_logprobs": [top]}


def _logprobs(body: dict[str, Any], prompt: list[int], token_id: int) -> dict[str, Any] | None:
    """Every token has a logprob of minus one tenth of its id."""
    num_top = body.get("logprobs")
    if num_top is None:
        return None
    assert body["return_tokens_as_token_ids"], "expected ids"
    every = [*prompt, token_id]
    logprobs = [-each / 10 for each in every]
    tops = [
        {f"token_id:{each}": logprob, "token_id:1": -0.1, "token_id:2": -0.2}
        for each, logprob in zip(every, logprobs, strict=True)
    ]
    if prompt:
        logprobs[0], tops[0] = None, None  # type: ignore[call-overload]
    return {
        "tokens": [f"token_id:{each}" for each in every],
        "token_logprobs": logprobs,
        "top_logprobs": tops,
        "text_offset": [0] * len(every),
    }
