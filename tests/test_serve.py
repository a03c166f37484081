"""The server in this process, on the shipped base as an untrained reward model: scores, refusals, batches."""

import asyncio
import base64
import json
import shutil
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from helpers import close, encoded, error_line, noise, says, wait_for, write_reward_model
from PIL import Image

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
from fastapi.testclient import TestClient

from rovrm import RewardScorer, serve
from rovrm.model.chat import ChatTemplate
from rovrm.serving.app import make_app
from rovrm.settings.keys import ServeConfig
from rovrm.world.default import BASE

QUESTION = "What is in the picture?"
ANSWERS = ["A red cup.", "Two blue stars.", "", "no", "A red cup."]
PATIENCE = 120  # seconds; the machine may be busy
CONFIG = ServeConfig(model="tiny", max_body=300_000)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory):
    scorer = RewardScorer.from_pretrained(write_reward_model(BASE, tmp_path_factory.mktemp("loud"), spread=0.3))
    scorer.max_length = 2000
    return scorer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """image_root, with a secret beside it and a link that leads there."""
    root = tmp_path_factory.mktemp("served") / "root"
    (root / "sub").mkdir(parents=True)
    noise(0).save(root / "sub" / "a.png")
    noise(1).save(root.parent / "secret.png")
    (root / "link.png").symlink_to(root.parent / "secret.png")
    (root / "clip.mp4").write_bytes(b"0" * 50)
    return root


def client_of(scorer, **settings) -> TestClient:
    return TestClient(make_app(scorer, replace(CONFIG, **settings)), raise_server_exceptions=False)


@pytest.fixture(scope="module")
def client(scorer, folder):
    with client_of(scorer, image_root=str(folder)) as client:
        yield client


def in_base64(image: Image.Image, kind: str = "PNG") -> str:
    return base64.b64encode(encoded(image, kind)).decode()


def huge_header(width: int, height: int) -> str:
    """A PNG whose header alone is there."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return base64.b64encode(
        b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(b"0")) + chunk(b"IEND", b"")
    ).decode()


def ask(client, path="/score", *, prompt: Any = QUESTION, responses: Any = ANSWERS, **more) -> Any:
    reply = client.post(path, json={"prompt": prompt, "responses": responses, **more})
    assert reply.status_code == 200, reply.text
    return reply.json()


def assert_refused(reply, status: int, *words: str) -> None:
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["error"]
    line = reply.json()["error"]
    assert "\n" not in line and "Traceback" not in line and len(line) < 500
    assert says(line, *words)


# ---- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_the_scorers(client, scorer):
    expected = scorer.score(QUESTION, ANSWERS, images=noise(0))
    assert max(expected) - min(expected) > 0.1  # else the comparison shows nothing
    text = in_base64(noise(0))
    for images in ([text], [f"data:image/png;base64,{text}"], [text[:80] + "\n" + text[80:]], ["sub/a.png"]):
        assert close(ask(client, images=images)["scores"], expected)
    blocks = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": QUESTION}]}]
    assert close(ask(client, prompt=blocks, images=[text])["scores"], expected)
    assert close(ask(client)["scores"], scorer.score(QUESTION, ANSWERS))
    assert close(ask(client, images=[])["scores"], scorer.score(QUESTION, ANSWERS))
    two = [noise(1), noise(2, (20, 90))]
    order = "<image 2> beside <image 1>"
    found = ask(client, prompt=order, images=[in_base64(image) for image in two])["scores"]
    assert close(found, scorer.score(order, ANSWERS, images=two))
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi."},
        {"role": "user", "content": QUESTION},
    ]
    assert close(ask(client, prompt=chat)["scores"], scorer.score(chat, ANSWERS))


def test_formats_and_orientation(client, scorer, tmp_path):
    turned = noise(3)
    exif = turned.getexif()
    exif[0x0112] = 6
    turned.save(tmp_path / "turned.jpg", exif=exif)
    transparent = noise(4).convert("RGBA")
    transparent.save(tmp_path / "transparent.webp", lossless=True)
    for file in tmp_path.iterdir():
        images = [base64.b64encode(file.read_bytes()).decode()]
        assert close(ask(client, images=images)["scores"], scorer.score(QUESTION, ANSWERS, images=file))


def test_rank(client, scorer):
    scores = scorer.score(QUESTION, ANSWERS, images=noise(0))
    ranking = ask(client, "/rank", images=[in_base64(noise(0))])
    assert close(ranking["scores"], scores)
    assert ranking["order"] == sorted(range(5), key=lambda i: -ranking["scores"][i])
    assert ranking["order"].index(0) != ranking["order"].index(4) and set(ranking["order"]) == set(range(5))


def test_normalize(scorer):
    before = scorer.mean, scorer.std
    scorer.mean, scorer.std = 0.5, 2.0
    expected = scorer.score(QUESTION, ANSWERS, normalize=True)
    assert close(ask(client_of(scorer, normalize=True))["scores"], expected)
    scorer.mean, scorer.std = before


def test_health_and_documentation(client):
    assert client.get("/health").json() == {
        "status": "ok",
        "model": "tiny",
        "precision": "float32",
        "normalize": False,
    }
    assert "/openapi.json" in client.get("/docs").text
    paths = client.get("/openapi.json").json()["paths"]
    assert set(paths) == {"/score", "/rank", "/get_reward", "/health"}
    for path in ("/score", "/rank", "/get_reward"):
        replies = paths[path]["post"]["responses"]
        assert {"200", "400", "401", "408", "413", "415", "422", "429", "500"} == set(replies)
        assert replies["422"]["content"]["application/json"]["schema"]["$ref"].endswith("/Error")


# ---- OpenRLHF --------------------------------------------------------------------------------------------------------


def rewards(client, query, prompts, **more) -> list[float]:
    reply = client.post("/get_reward", json={"query": query, "prompts": prompts, "labels": ["x"] * len(query), **more})
    assert reply.status_code == 200, reply.text
    found = reply.json()
    assert set(found) == {"rewards", "scores", "extra_logs"} and found["scores"] == found["rewards"]
    assert all(values == found["rewards"] for values in found["extra_logs"].values())
    return found["rewards"]


def test_openrlhf_request(client, scorer):
    prompts = [QUESTION, QUESTION, "How many?", QUESTION]
    answers = ["A cup.", "A dog.", "Two.", "A cup."]
    text = in_base64(noise(0))
    images = [text, [text], None, []]
    pictures = [noise(0), noise(0), None, None]
    query = [f"{p} {a} </s><pad>\n" for p, a in zip(prompts, answers, strict=True)]
    expected = [scorer.score(p, [a], images=i)[0] for p, a, i in zip(prompts, answers, pictures, strict=True)]
    assert close(rewards(client, query, prompts, images=images), expected)
    plain = [scorer.score(p, [a])[0] for p, a in zip(prompts, answers, strict=True)]
    assert close(rewards(client, query, prompts), plain)
    assert close(rewards(client, query, prompts, images=None, labels=None), plain)
    assert rewards(client, [], []) == []  # what OpenRLHF sends to a server without work


def test_openrlhf_prompt_in_the_models_own_template(client, scorer):
    """The reward is that of the conversation, and its text the query itself."""
    processor = scorer.processor
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi."}]
    for images in ([], [noise(0)]):
        for before in ([], turns):
            content = [*([{"type": "image"}] * len(images)), {"type": "text", "text": QUESTION}]
            chat = [*before, {"role": "user", "content": content}]
            if before and images:  # a turn's image leads the whole text, as the server's placeholder does
                continue
            prompt = processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
            query = f"{prompt} A cup.</s>"
            example = {"prompt": chat, "responses": ["A cup."], "images": images}
            [measured] = scorer.measure([example])
            assert ChatTemplate(processor).conversations(measured) == [query]
            token = processor.tokenizer.convert_ids_to_tokens(scorer.collator.image_token_id)
            expanded = query.replace(token, token * 9)  # as a policy's tokens are decoded
            for sent in (query, expanded):
                found = rewards(client, [sent], [prompt], images=[[in_base64(image) for image in images]])
                assert close(found, scorer.score(chat, ["A cup."], images=images or None))


def test_openrlhf_adjacent_images_keep_their_order(client, scorer):
    """Expanded, two adjacent images are one run of image tokens; the rewards are those of /score."""
    pictures = [in_base64(noise(0)), in_base64(noise(1, (20, 90)))]
    blocks = [{"type": "image"}, {"type": "image"}, {"type": "text", "text": QUESTION}]
    chat = [{"role": "user", "content": blocks}]
    expected, swapped = (ask(client, prompt=chat, images=some)["scores"] for some in (pictures, pictures[::-1]))
    assert min(abs(a - b) for a, b in zip(expected, swapped, strict=True)) > 1e-3  # else the order shows nothing
    token = scorer.processor.tokenizer.convert_ids_to_tokens(scorer.collator.image_token_id)
    own = scorer.processor.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    expanded = own.replace(token, token * 9)  # 9 tokens to an image
    for prompt in (own, expanded, token * 18 + QUESTION, token * 2 + QUESTION):
        query = [f"{prompt} {answer}</s>" for answer in ANSWERS]
        found = rewards(client, query, [prompt] * len(query), images=[pictures] * len(query))
        assert close(found, expected), prompt
    apart = f"{token * 2} and {token}"  # three tokens for three images: not expanded, each its own
    found = rewards(client, [f"{apart} A cup."], [apart], images=[[*pictures, pictures[0]]])
    assert close(found, scorer.score(apart, ["A cup."], images=[noise(0), noise(1, (20, 90)), noise(0)]))
    apart = f"{token * 9} and {token * 18}"
    reply = client.post(
        "/get_reward", json={"query": [f"{apart} A"], "prompts": [apart], "images": [[*pictures, pictures[0]]]}
    )
    assert_refused(reply, 422, "query[0]", "2 places for 3 images", "one <image> for each image")


def test_openrlhf_refusals(client):
    def send(**body):
        return client.post("/get_reward", json=body)

    assert_refused(
        send(query=["Hi A"], prompts=["Ho"]), 422, "query[0]", "'Hi A'", "start with prompts[0]", "prompt + response"
    )
    assert_refused(send(query=["Hi A"], prompts=[]), 422, "prompts", "0 entries for 1")
    assert_refused(send(query=["Hi A"], prompts=["Hi"], images=[]), 422, "images", "0 entries for 1")
    assert_refused(send(query=["Hi A"]), 422, "prompts", "missing")
    assert_refused(send(query="Hi A", prompts=["Hi"]), 422, "query", "'Hi A'", "list")
    assert_refused(send(query=["Hi A"], prompts=["Hi"], images=[[5]]), 422, "images[0][0]", "5", "string")
    assert_refused(send(query=["Hi", "Hi <image>"], prompts=["Hi", "Hi"]), 422, "query[0]", "<image>")
    assert_refused(send(query=["Hi A"], prompts=["Hi"], images=["a.txt"]), 422, "images[0][0]", "a.txt")
    assert_refused(send(query=["[INST]<s>Hi A"], prompts=["[INST]<s>Hi"]), 422, "prompts[0]", "'<s>'", "chat template")


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_no_request(client):
    def send(content, kind="application/json"):
        return client.post("/score", content=content, headers={"Content-Type": kind} if kind else {})

    assert_refused(send(b"{not json"), 400, "not JSON", "character 1")
    assert_refused(send(b"\xff\xfe{"), 400, "not JSON")
    assert_refused(send(b"[" * 100_000), 400, "not JSON")
    assert_refused(send(b""), 400, "empty")
    assert_refused(send(b"{}", "text/plain"), 415, "Content-Type", "'text/plain'", "application/json")
    assert_refused(send(b"{}", None), 415, "Content-Type")
    assert_refused(client.get("/nothing"), 404, "/nothing", "/score")
    assert_refused(client.get("/no%0Athing"), 404, r"/no\nthing")
    assert_refused(client.post("/score/", json={}), 404, "/score/")
    assert_refused(client.get("/score"), 405, "GET /score", "POST")
    assert_refused(client.post("/health", json={}), 405, "POST /health", "GET")
    assert_refused(send(b"[1, 2]"), 422, "the body", "[1, 2]")
    assert_refused(send(b'"text"'), 422, "the body", "'text'")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"prompt": 5}, ("prompt: got 5", "string")),
        ({"prompt": None}, ("prompt: got None",)),
        ({"prompt": {"role": "user"}}, ("prompt: got {'role': 'user'}",)),
        ({"prompt": [{"role": "boss", "content": "Hi"}]}, ("prompt[0].role: got 'boss'", "'user'")),
        ({"prompt": [{"role": "user"}]}, ("prompt[0].content: missing",)),
        ({"prompt": [{"role": "user", "content": [{"type": "text"}]}]}, ("prompt[0].content[0].text: missing",)),
        ({"prompt": [{"role": "user", "content": [{"type": "video"}]}]}, ("prompt[0].content[0]", "'video'")),
        (
            {"prompt": [{"role": "user", "content": [{"type": "image", "image": "/etc/passwd"}]}]},
            ("unknown key prompt[0].content[0].image", "/etc/passwd"),
        ),
        ({"prompt": [{"role": "assistant", "content": "Hi"}]}, ("prompt", "user")),
        ({"prompt": []}, ("prompt",)),
        ({"prompt": ""}, ("prompt is empty",)),
        ({"prompt": "<image> and <image>"}, ("asks for image 2", "give the images")),
        ({"prompt": "<video> Hi"}, ("video",)),
        ({"responses": []}, ("responses: got []", "at least 1")),
        ({"responses": ["A"] * 65}, ("responses: got", "at most 64")),
        ({"responses": "A"}, ("responses: got 'A'", "list")),
        ({"responses": ["A", 3]}, ("responses[1]: got 3", "string")),
        ({"responses": ["A", "B <image>"]}, ("stands for an image", "'<image>'")),
        ({"responses": ["A", "word " * 3_000, "B"]}, ("tokens", "max_length=2000")),
        ({"prompt": "word " * 3_000}, ("tokens", "max_length=2000")),
        ({"prompt": "word " * 14_000}, ("characters cannot fit", "max_length=2000", "shorten")),
        ({"images": "a"}, ("images: got 'a'", "list")),
        ({"images": [None]}, ("images[0]: got None", "string")),
        ({"images": ["/9j/"] * 65}, ("images: got", "at most 64")),
        ({"video": "a.mp4"}, ("unknown key video", "'a.mp4'")),
        ({"image": "a.png"}, ("unknown key image",)),
        ({"x\n" * 500: 1}, (r"unknown key x\nx",)),
        ({"\ud800": 1}, ("the body", "unicode")),
        ({"responses": ["half a character: \ud800"]}, ("half a character", r"'\ud800'")),
    ],
)
def test_wrong_values(client, body, words):
    content = json.dumps({"prompt": QUESTION, "responses": ANSWERS} | body)  # the client's own json= refuses surrogates
    assert_refused(client.post("/score", content=content, headers={"Content-Type": "application/json"}), 422, *words)


def test_missing_key(client):
    assert_refused(client.post("/rank", json={"prompt": QUESTION}), 422, "responses: missing")


def test_images_that_are_refused(client, folder):
    def send(*images):
        return client.post("/score", json={"prompt": QUESTION, "responses": ANSWERS, "images": list(images)})

    good = in_base64(noise(0))
    assert_refused(send(good, huge_header(10_000, 6_000)), 413, "60003072 pixels", "max_pixels=50000000")
    assert_refused(send(huge_header(60_000, 60_000)), 413, "images[0]", "pixels")  # above Pillow's own limit
    cut = base64.b64encode(base64.b64decode(in_base64(noise(0), "JPEG"))[:-200]).decode()
    assert_refused(send(good, cut), 415, "images[1]", "truncated")
    assert_refused(send(base64.b64encode(b"%PDF-1.7 nothing").decode()), 415, "images[0]", "no image", "PNG")
    assert_refused(send("data:image/svg+xml,<svg/>"), 415, "images[0]", "base64")
    assert_refused(send("data:image/png;base64,????"), 415, "images[0]", "base64")
    assert_refused(send(good[:-3]), 415, "images[0]", "base64")
    assert_refused(send("/etc/passwd"), 415, "images[0]", "/etc/passwd")
    assert_refused(send("clip.mp4"), 415, "images[0]", "no image")
    assert_refused(
        send("https://example.org/a.jpg"), 422, "images[0]", "https://example.org/a.jpg", "URLs are not fetched"
    )
    assert_refused(send("file:///etc/passwd"), 422, "URLs are not fetched")
    outside = ("../secret.png", "sub/../../secret.png", str(folder.parent / "secret.png"), "link.png", "../none.png")
    for path in (*outside, str(folder / "sub" / "a.png"), "sub/../sub/a.png"):
        assert_refused(send(path), 422, "images[0]", "inside image_root")
    assert_refused(send("none.png"), 422, "'none.png'", "no such file")
    assert_refused(send("sub."), 422, "no such file")
    assert_refused(send("a\0.png"), 422, "images[0]")
    assert_refused(send(""), 422, "images[0]", "''")


def test_paths_need_image_root(scorer):
    client = client_of(scorer)
    assert_refused(
        client.post("/score", json={"prompt": "Hi", "responses": ["A"], "images": ["a.png"]}), 422, "image_root=FOLDER"
    )


def test_image_files_are_bounded_too(scorer, folder):
    client = client_of(scorer, image_root=str(folder), max_body=200)
    reply = client.post("/score", json={"prompt": "Hi", "responses": ["A"], "images": ["sub/a.png"]})
    assert_refused(reply, 413, "sub/a.png", "max_body=200")


def test_body_too_large(client):
    big = json.dumps({"prompt": "a" * 400_000, "responses": ["A"]}).encode()
    head = {"Content-Type": "application/json"}
    assert_refused(client.post("/score", content=big, headers=head), 413, "max_body=300000")
    assert_refused(client.post("/score", content=iter([big]), headers=head), 413, "max_body=300000")  # sent in chunks


@pytest.mark.parametrize(
    ("length", "chunks", "read_chunks"),
    [(None, None, 13), ("1300000", None, 0), ("500000", 5, 5)],
    ids=["endless", "announced as far too long", "too long, read to its end before the reply"],
)
def test_how_far_a_body_that_is_too_long_is_read(client, length, chunks, read_chunks):
    """Of max_body=300000 up to four times as much; chunks as ASGI servers hand them over."""
    read, sent = [], []

    async def receive():
        read.append(1)
        return {"type": "http.request", "body": b"a" * 100_000, "more_body": len(read) != chunks}

    async def send(message):
        sent.append(message)

    head = [(b"content-type", b"application/json")] + ([(b"content-length", length.encode())] if length else [])
    scope = {"type": "http", "method": "POST", "path": "/score", "headers": head, "query_string": b""}
    asyncio.run(client.app(scope, receive, send))
    assert sent[0]["status"] == 413 and len(read) == read_chunks


def test_a_body_that_does_not_arrive(client, monkeypatch):
    monkeypatch.setattr("rovrm.serving.door.BODY_SECONDS", 0.05)
    sent = []

    async def receive():
        await asyncio.sleep(60)

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/score", "query_string": b""}
    asyncio.run(client.app(scope | {"headers": [(b"content-type", b"application/json")]}, receive, send))
    assert sent[0]["status"] == 408 and b"did not arrive" in sent[1]["body"]


def test_token(scorer):
    client = client_of(scorer, token="sesame")
    body = {"prompt": QUESTION, "responses": ["A"]}

    def send(value, path="/score", **more):
        headers = {"Authorization": value} if value is not None else {}
        return client.post(path, json=body, headers=headers | more)

    assert_refused(send(None), 401, "no token", "Authorization: Bearer")
    for wrong in ("Bearer open", "Bearer ", "Basic sesame", "sesame", "Bearer sesame2", "Bearer ses\u00e4me"):
        assert_refused(send(wrong.encode("latin-1")), 401, "token")
    assert_refused(send(None, Host="x/health?"), 401, "token")
    assert_refused(send(None, "/nothing"), 401, "token")
    assert send("Bearer sesame").status_code == send("bearer sesame").status_code == 200
    assert client.get("/health").status_code == client.get("/openapi.json").status_code == 200


def test_a_server_error_tells_nothing_and_ends_nothing(client, scorer, monkeypatch):
    def broken(*args, **options):
        raise RuntimeError("/private/path: device lost")

    expected = ask(client)
    monkeypatch.setattr(scorer, "score_batch", broken)
    assert_refused(client.post("/score", json={"prompt": QUESTION, "responses": ANSWERS}), 500, "the server failed")
    monkeypatch.undo()
    assert ask(client) == expected
    weight = scorer.model.score.weight.data
    before = weight.clone()
    weight.fill_(float("nan"))
    assert_refused(client.post("/score", json={"prompt": QUESTION, "responses": ANSWERS}), 500, "nan", "dtype=float32")
    weight.copy_(before)
    assert ask(client) == expected


# ---- batches ---------------------------------------------------------------------------------------------------------


class Gate:
    """Holds the scorer's calls until the block ends or `holds` is set, and notes how many examples each call has."""

    def __init__(self, scorer, monkeypatch, fails: str = ""):
        self.calls: list[int] = []
        self.holds, self.real, self.fails = threading.Event(), scorer.score_batch, fails
        monkeypatch.setattr(scorer, "score_batch", self)

    def __call__(self, examples, *options):
        self.calls.append(len(examples))
        assert self.holds.wait(PATIENCE)
        if self.fails and any(self.fails in e.responses for e in examples):
            raise RuntimeError("poisoned")
        return self.real(examples, *options)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.holds.set()


def together(client, bodies, gate) -> list[Any]:
    """Replies to requests of which the first is being scored while the others come and wait."""
    line = client.app.state.queue
    with ThreadPoolExecutor(len(bodies)) as pool, gate:
        replies = [pool.submit(client.post, "/score", json=bodies[0])]
        wait_for(lambda: gate.calls)
        replies += [pool.submit(client.post, "/score", json=body) for body in bodies[1:]]
        wait_for(lambda: line.waiting.qsize() == len(bodies) - 1)
        gate.holds.set()
        return [reply.result() for reply in replies]


def requests(scorer, count: int) -> tuple[list[dict[str, Any]], list[list[float]]]:
    """Bodies, every other with an image, and the scores they must get."""
    pictures = [noise(i) if i % 2 else None for i in range(count)]
    prompts = [f"{QUESTION} {i}" for i in range(count)]
    bodies = [
        {"prompt": p, "responses": ANSWERS[: 1 + i % 3], "images": [in_base64(image)] if image else None}
        for i, (p, image) in enumerate(zip(prompts, pictures, strict=True))
    ]
    scores = [scorer.score(b["prompt"], b["responses"], i) for b, i in zip(bodies, pictures, strict=True)]
    return bodies, scores


def test_what_waits_is_scored_in_one_call(client, scorer, monkeypatch):
    bodies, expected = requests(scorer, 9)
    gate = Gate(scorer, monkeypatch)
    replies = together(client, bodies, gate)
    assert gate.calls == [1, 8]
    assert all(close(r.json()["scores"], e) for r, e in zip(replies, expected, strict=True))


def test_batches_keep_to_their_tokens_and_pixels(scorer, monkeypatch):
    bodies, expected = requests(scorer, 7)
    [measured] = scorer.measure([{"prompt": bodies[1]["prompt"], "responses": ["x"], "images": noise(1)}])
    for limit in ({"batch_tokens": 3 * measured.lengths[0]}, {"max_pixels": 64 * 48 * 2}):
        with client_of(scorer, **limit) as client:
            gate = Gate(scorer, monkeypatch)
            replies = together(client, bodies, gate)
            assert sum(gate.calls) == 7 and 3 <= len(gate.calls) < 7
            assert all(close(r.json()["scores"], e) for r, e in zip(replies, expected, strict=True))
            monkeypatch.undo()


def test_a_poisoned_request_fails_alone(client, scorer, monkeypatch):
    bodies, expected = requests(scorer, 6)
    bodies[3]["responses"] = ["poison"]
    gate = Gate(scorer, monkeypatch, fails="poison")
    replies = together(client, bodies, gate)
    assert gate.calls == [1, 5, 1, 1, 1, 1, 1]
    assert_refused(replies[3], 500, "the server failed")
    good = [i for i in range(6) if i != 3]
    assert all(close(replies[i].json()["scores"], expected[i]) for i in good)


def test_bad_requests_never_reach_a_batch(client, scorer, monkeypatch):
    bodies, expected = requests(scorer, 4)
    with ThreadPoolExecutor(1) as pool, Gate(scorer, monkeypatch) as gate:
        first = pool.submit(client.post, "/score", json=bodies[0])
        wait_for(lambda: gate.calls)
        cut = in_base64(noise(0), "JPEG")[:400]
        for body in ({"images": [cut]}, {"responses": ["word " * 3_000]}, {"prompt": "<image><image>"}):
            assert client.post("/score", json=bodies[1] | body).status_code in (415, 422)  # while a batch is scored
        gate.holds.set()
        assert close(first.result().json()["scores"], expected[0])
    assert gate.calls == [1]


def test_queue_full(scorer, monkeypatch):
    bodies, expected = requests(scorer, 3)
    with client_of(scorer, queue=2) as client:
        with ThreadPoolExecutor(2) as pool, Gate(scorer, monkeypatch) as gate:
            replies = [pool.submit(client.post, "/score", json=bodies[0])]
            wait_for(lambda: gate.calls)  # one by one: two that come together may go into one call
            replies.append(pool.submit(client.post, "/score", json=bodies[1]))
            wait_for(lambda: client.app.state.queue.waiting.qsize() == 1)
            reply = client.post("/score", json=bodies[2])
            assert_refused(reply, 429, "2 requests", "queue=2", "try again")
            assert reply.headers["retry-after"] == "1" and client.get("/health").status_code == 200
            gate.holds.set()
            assert all(close(r.result().json()["scores"], e) for r, e in zip(replies, expected, strict=False))
        assert close(client.post("/score", json=bodies[2]).json()["scores"], expected[2])


# ---- the command -----------------------------------------------------------------------------------------------------


def test_command_refuses(capsys, monkeypatch, tmp_path):
    def message(*words):
        return error_line(capsys, serve.main, "model=none", *words)

    monkeypatch.delenv("ROVRM_TOKEN", raising=False)
    for host in ("0.0.0.0", "::", "192.168.0.1", "example.org"):
        assert "ROVRM_TOKEN" in message(f"host={host}")
    assert "image_root" in message(f"image_root={tmp_path}/none")
    assert "port" in message("port=70000")
    taken = serve._listen("127.0.0.1", 0)
    assert f"port={taken.getsockname()[1]}" in message(f"port={taken.getsockname()[1]}")
    taken.close()
    monkeypatch.setitem(__import__("sys").modules, "uvicorn", None)
    assert "pip install 'rovrm[serve]'" in message()


def test_the_tokens_of_a_request_are_bounded(scorer, monkeypatch):
    """One request must not hold the scoring thread for all others."""
    with client_of(scorer, max_tokens=400) as client, Gate(scorer, monkeypatch) as gate:
        gate.holds.set()
        long = {"prompt": QUESTION, "responses": [f"{i} " + "word " * 60 for i in range(8)]}
        assert_refused(client.post("/score", json=long), 413, "tokens", "max_tokens=400", "send fewer or shorter ones")
        many = {"query": [f"{i}? Yes" for i in range(64)], "prompts": [f"{i}?" for i in range(64)]}
        assert_refused(client.post("/get_reward", json=many), 413, "max_tokens=400")
        endless = {"prompt": QUESTION, "responses": ["a" * 13_000]}
        assert_refused(client.post("/score", json=endless), 413, "characters together", "max_tokens=400")
        assert not gate.calls
        assert client.post("/score", json={"prompt": QUESTION, "responses": ["Yes."]}).status_code == 200


LONG_TYPE = [{"role": "user", "content": [{"type": "x" * 9000}]}]


@pytest.mark.parametrize("prompt", ["<image " + "9" * 5000 + ">", LONG_TYPE])
def test_what_a_refusal_repeats_is_bounded(client, prompt):
    """The second is repeated by pydantic."""
    assert_refused(client.post("/score", json={"prompt": prompt, "responses": ["A"]}), 422, "prompt")
    given = prompt if isinstance(prompt, str) else prompt[0]["content"][0]["type"]
    assert_refused(
        client.post("/get_reward", json={"query": [f"{given} A"], "prompts": [given, given]}), 422, "prompts"
    )


def test_a_broken_folder_or_host_is_one_line(reward, capsys, tmp_path):
    def message(*words):
        return error_line(capsys, serve.main, "port=0", *words)

    for host in ("no.such.host.invalid", "a..b", "\0", "\udc80"):
        assert "give another port or host" in message("model=none", "token=x", f"host={host}")
    folder = tmp_path / "model"
    for name, content in (
        ("model.safetensors", (Path(reward) / "model.safetensors").read_bytes()[:1000]),
        ("config.json", b'{"model_type": "llava", "architectures": [5]}'),
        ("config.json", b"[]"),
        ("tokenizer.json", b'{"version": 1}'),
        ("chat_template.jinja", b"\xff\xfe"),
    ):
        shutil.copytree(reward, folder)
        (folder / name).write_bytes(content)
        printed = message(f"model={folder}")
        assert "cannot load" in printed and str(folder) in printed and name in printed
        shutil.rmtree(folder)
