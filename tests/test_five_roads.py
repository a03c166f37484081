"""One table of rows, each read by the five roads: training, score, best-of-n, the server, and the scorer in Python.

Of a row that is read, what reaches the collator is compared: the rendered conversations, the pixels of the pictures,
and the rewards. A row that is refused is refused by all. Where a road must differ, the table says which, and why.
"""

import json
from pathlib import Path
from typing import Any

import pytest
from helpers import read_lines, write_lines, write_reward_model
from road_rows import CASES, PICTURES, PYTHON, ROADS, SERVE, WINDOW, Case, in_base64

pytest.importorskip("fastapi")
pytest.importorskip("httpx2")
from fastapi.testclient import TestClient

from rovrm import RewardScorer, bon, score
from rovrm.common.errors import UserError
from rovrm.data.images import content_hash
from rovrm.data.loading import load_examples
from rovrm.model.collator import RewardCollator
from rovrm.model.loading import load_processor, load_reward_model
from rovrm.serving.app import make_app
from rovrm.settings.keys import ServeConfig
from rovrm.training.checks import check_examples
from rovrm.training.trainer import RewardConfig, RewardTrainer

ANSWER_COLUMNS = {"chosen", "rejected", "responses", "rejected_response"}


# ---- the roads -------------------------------------------------------------------------------------------------------


class Roads:
    """The five roads of one model. Each takes a case and gives its rewards, best first, or raises UserError."""

    def __init__(self, scorer: RewardScorer, folder: Path):
        self.scorer, self.folder = scorer, folder
        arguments = RewardConfig(str(folder / "out"), report_to=[], use_cpu=True, disable_tqdm=True)
        self.trainer = RewardTrainer(scorer.model, arguments, processing_class=scorer.processor)
        self.client = TestClient(make_app(scorer, ServeConfig(model="tiny")), raise_server_exceptions=False)

    def train(self, case: Case) -> list[float]:
        loaded = load_examples(self._file(case.row))
        checked = check_examples(loaded.examples, self.scorer.collator, WINDOW)
        if loaded.rejected or checked.skipped:
            raise UserError(str([*loaded.rejected, *checked.skipped]))
        [example] = checked.examples
        assert example.margin == case.row.get("margin")
        [rewards] = self.trainer.predict_rewards([example])
        return rewards

    def score(self, case: Case) -> list[float]:
        out = self.folder / "rewards.jsonl"
        settings = [f"model={self.folder}", f"in={self._file(case.row)}", f"out={out}", f"max_length={WINDOW}"]
        score.score([*settings, "workers=0"])
        [record] = read_lines(out)
        return record["rewards"]

    def bon(self, case: Case) -> list[float]:
        prompt = case.bon or {column: value for column, value in case.row.items() if column not in ANSWER_COLUMNS}
        out = self.folder / f"bon-{len([*self.folder.glob('bon-*')])}"
        file = self._file(prompt | {"candidates": case.answers})
        bon.bon([f"model={self.folder}", f"candidates={file}", f"out={out}"])
        [record] = read_lines(out / "bon.jsonl")
        if "error" in record:
            raise UserError(record["error"])
        return record["scores"]

    def serve(self, case: Case) -> list[float]:
        if case.means is None or SERVE in case.refused:
            images = case.row.get("images") or [case.row[name] for name in ("image",) if name in case.row]
            columns = {c: v for c, v in case.row.items() if c not in ANSWER_COLUMNS and c not in ("image", "images")}
            body = columns | {"responses": case.answers, "images": images}
        else:
            body = {"prompt": case.means, "responses": case.answers, "images": [in_base64(n) for n in case.pictures]}
        reply = self.client.post("/score", content=json.dumps(body), headers={"content-type": "application/json"})
        if reply.status_code in (413, 415, 422):
            raise UserError(reply.json()["error"])
        assert reply.status_code == 200, reply.text
        return reply.json()["scores"]

    def python(self, case: Case) -> list[float]:
        [rewards] = self.scorer.score_batch([case.row])
        return rewards

    def _file(self, row: dict[str, Any]) -> str:
        return write_lines(self.folder / "rows.jsonl", row)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("roads")
    for name, image in PICTURES.items():
        image.save(folder / f"{name}.png")
    (folder / "broken.png").write_bytes((folder / "red.png").read_bytes()[:200])
    return folder


@pytest.fixture(scope="module", params=["qwen2_vl", "llava"])
def roads(request, family_folder, folder, tmp_path_factory):
    model = write_reward_model(family_folder(request.param), tmp_path_factory.mktemp("model"), spread=0.3)
    scorer = RewardScorer(load_reward_model(model), load_processor(model))
    scorer.max_length = WINDOW
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(RewardScorer, "from_pretrained", lambda *_, **__: scorer)
        yield Roads(scorer, folder)


@pytest.fixture
def seen(monkeypatch):
    """What reaches the collator: {text of the conversation, hashes of its pictures}."""
    seen: set[tuple[str, tuple[str, ...]]] = set()
    call = RewardCollator.__call__

    def watched(self, examples):
        for example in examples:
            pictures = tuple(content_hash(ref.open()) for ref in example.images)
            seen.update((text, pictures) for text in self.chat.conversations(example))
        return call(self, examples)

    monkeypatch.setattr(RewardCollator, "__call__", watched)
    return seen


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_a_row_means_the_same_on_every_road(roads, seen, case: Case):
    rewards: dict[str, list[float]] = {}
    read: dict[str, Any] = {}
    for road in ROADS:
        seen.clear()
        if case.means is None or road in case.refused:
            with pytest.raises(UserError):
                getattr(roads, road)(case)
            continue
        rewards[road] = getattr(roads, road)(case)
        read[road] = set(seen)
    if case.means is None:
        return
    hashes = tuple(content_hash(PICTURES[name]) for name in case.pictures)
    assert {pictures for _, pictures in read[PYTHON]} == {hashes}
    for road in rewards:
        assert read[road] == read[PYTHON], road
        assert rewards[road] == pytest.approx(rewards[PYTHON], abs=1e-5), road
    assert len(rewards[PYTHON]) == len(case.answers)
