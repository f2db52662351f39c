"""A judge behind a real HTTP server that speaks the OpenAI protocol, with faults injected by a seeded plan.

Its verdict is a fixed function of the prompt, so a test knows what every response must have got, whatever went wrong before.
"""

import json
import math
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = ("429", "500", "time-out", "truncated", "no log-probs")
HANG_SECONDS = 5


def verdict(prompt: str) -> int:
    """The number that this judge gives a prompt: the share of its letters that are capitals, in per cent, of the answer."""
    answer = prompt.rpartition("[ANSWER]")[2].partition("[END ANSWER]")[0]
    letters = [letter for letter in answer if letter.isalpha()]
    return round(100 * sum(letter.isupper() for letter in letters) / len(letters)) if letters else 50


class JudgeServer:
    """Start with `with JudgeServer(...) as server`; `server.url` is its address, on this machine only.

    faults: the share of requests to which a fault happens, at most `most` times to one prompt. logprobs: whether it gives any
    at all. replies: prompt to {token: probability}, instead of `verdict`. status: answered to everything, if not 200. splits:
    its tokens are single digits, and it goes on from the beginning of a reply, as vLLM does when asked to. words: tokens billed
    for a reply.
    """

    def __init__(self, faults=0.0, most=2, seed=0, logprobs=True, replies=None, status=200, delay=0.0, splits=False, words=1):
        self.rate, self.most, self.random, self.logprobs, self.replies = faults, most, random.Random(seed), logprobs, replies
        self.status, self.delay, self.splits, self.words = status, delay, splits, words
        self.requests, self.injected, self.answered, self.hit = 0, Counter(), Counter(), Counter()
        self.prompts = []
        self.lock = threading.Lock()

    def __enter__(self):
        owner = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_POST(self):
                owner.answer(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler, body):
        beginning = body["messages"][-1]["content"] if body["messages"][-1]["role"] == "assistant" else ""
        prompt = body["messages"][-2 if beginning else -1]["content"]
        with self.lock:
            self.requests += 1
            self.prompts.append(body["messages"])
            fault = ""
            if "85 and nothing" not in prompt and self.random.random() < self.rate and self.hit[beginning + prompt] < self.most:
                fault = FAULTS[sum(self.injected.values()) % len(FAULTS)]
                self.hit[beginning + prompt] += 1
                self.injected[fault] += 1
            else:
                self.answered[beginning + prompt] += 1
        time.sleep(self.delay)
        if self.status != 200:
            return self.send(
                handler, self.status, {"error": {"message": "The model does not exist", "code": "model_not_found"}}
            )
        if fault in ("429", "500"):
            return self.send(handler, int(fault), {"error": {"message": "injected", "type": "injected"}})
        if fault == "time-out":
            time.sleep(HANG_SECONDS)
        reply = self.reply(prompt, beginning, body, self.logprobs and fault != "no log-probs")
        return self.send(handler, 200, reply, truncated=fault == "truncated")

    def reply(self, prompt, beginning, body, logprobs):
        value = 85 if "85 and nothing" in prompt else verdict(prompt)
        if self.replies:
            tokens = self.replies(prompt)
        elif self.splits:
            asked = not beginning or body.get("continue_final_message")
            tokens = (
                {str(value)[len(beginning) :][:1] or "<end>": 1.0} if asked and str(value).startswith(beginning) else {"?": 1.0}
            )
        else:
            tokens = {str(value): 0.9, str(value + 1 if value < 100 else 99): 0.05, "٨": 0.02, "999": 0.02, "The": 0.01}
        top = [{"token": t, "logprob": math.log(p), "bytes": list(t.encode())} for t, p in tokens.items()]
        content = [{**top[0], "top_logprobs": top}] if logprobs and body.get("logprobs") else None
        choice = {
            "index": 0,
            "finish_reason": "length" if body.get("max_tokens") == 1 else "stop",
            "message": {"role": "assistant", "content": top[0]["token"]},
            "logprobs": {"content": content, "refusal": None} if content else None,
        }
        asked = len(prompt) // 4
        usage = {"prompt_tokens": asked, "completion_tokens": self.words, "total_tokens": asked + self.words}
        return {
            "id": "x",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [choice],
            "usage": usage,
        }

    def send(self, handler, status, content, truncated=False):
        data = json.dumps(content).encode()
        try:
            handler.send_response(status)
            handler.send_header("Content-Type", "application/json")
            handler.send_header("Content-Length", str(len(data) // 2 if truncated else len(data)))
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2] if truncated else data)
        except (BrokenPipeError, ConnectionResetError):
            pass
