"""Families whose processors also take videos, from the base installation: without torchvision and num2words."""

import json
import logging
import os
import subprocess
import sys

import pytest
from families import has_torchvision
from helpers import REAL, ROOT, close, noise, refused, write_lines

from rovrm.common.errors import UserError, broken_torchvision
from rovrm.model import contract
from rovrm.model.loading import load_processor, loading
from rovrm.model.scorer import RewardScorer
from rovrm.model.video import AbsentVideoProcessor, image_backend

TEMPLATE = REAL / "chat_templates" / "Qwen__Qwen2.5-VL-7B-Instruct" / "chat_template.jinja"
WITH_VIDEO = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "internvl", "llava_onevision", "smolvlm")
needs_no_torchvision = pytest.mark.skipif(has_torchvision(), reason="torchvision is installed, and used")

# In an interpreter of its own, where no test has taught transformers anything.
TRAIN_SCORE_SERVE = """
import json, sys
from rovrm.train import main
base, data, out = sys.argv[1:]
words = ["workers=0", "trainer.disable_tqdm=true", "trainer.use_cpu=true", "trainer.max_steps=2", "tuning=lora"]
assert main([f"model={base}", "phase=3", f"visual.data={data}", f"out={out}", "eval_fraction=0.25", *words]) == 0
from rovrm import RewardScorer
folder = f"{out}/phase3-visual"
scorer = RewardScorer.from_pretrained(folder, device="cpu")
from transformers import processing_utils
names = processing_utils.MODALITY_TO_AUTOPROCESSOR_MAPPING._MAPPING_NAMES
assert names["video_processor"][1] == "AutoVideoProcessor", names
import base64
from fastapi.testclient import TestClient
from rovrm.serving.app import make_app
from rovrm.settings.keys import ServeConfig
picture = f"{data.rsplit('/', 1)[0]}/0.png"
scores = scorer.score("What is it?", ["A cup.", "A dog."], images=picture)
body = {"prompt": "What is it?", "responses": ["A cup.", "A dog."]}
body["images"] = [base64.b64encode(open(picture, "rb").read()).decode()]
served = TestClient(make_app(scorer, ServeConfig(model=folder))).post("/score", json=body).json()["scores"]
print(json.dumps([scores, served]))
"""


@needs_no_torchvision
@pytest.mark.skipif(not TEMPLATE.is_file(), reason="the real chat templates are not there")
def test_qwen_vl_trains_scores_and_serves_from_the_base_installation(family_folder, tmp_path):
    pytest.importorskip("fastapi")
    base = tmp_path / "base"
    base.mkdir()
    for file in family_folder("qwen2_5_vl").iterdir():
        (base / file.name).write_bytes(file.read_bytes())
    (base / "chat_template.jinja").write_text(TEMPLATE.read_text())
    rows = []
    for i in range(8):
        noise(i).save(tmp_path / f"{i}.png")
        rows.append(
            {"image": f"{i}.png", "prompt": f"What is it, {i}?", "chosen": f"A cup {i}.", "rejected": f"A dog {i}."}
        )
    data = write_lines(tmp_path / "pairs.jsonl", *rows)
    command = [sys.executable, "-c", TRAIN_SCORE_SERVE, str(base), data, str(tmp_path / "run")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr[-3000:]
    scores, served = json.loads(done.stdout.splitlines()[-1])
    assert close(scores, served)
    versions = json.loads((tmp_path / "run" / "phase3-visual" / contract.FILE).read_text())["versions"]
    assert versions["images"] == "PIL"


@needs_no_torchvision
@pytest.mark.parametrize("family", WITH_VIDEO)
def test_the_video_half_keeps_its_settings_and_refuses_videos(family_folder, tmp_path, family):
    folder = tmp_path / "processor"
    for file in family_folder(family).iterdir():
        folder.mkdir(exist_ok=True)
        (folder / file.name).write_bytes(file.read_bytes())
    saved = json.loads((folder / "processor_config.json").read_text())
    saved["video_processor"] |= {"merge_size": 3, "fps": 7}
    (folder / "processor_config.json").write_text(json.dumps(saved))
    processor = load_processor(str(folder))
    assert isinstance(processor.video_processor, AbsentVideoProcessor)
    processor.save_pretrained(tmp_path / "again")
    again = json.loads((tmp_path / "again" / "processor_config.json").read_text())
    assert again["video_processor"] == saved["video_processor"]
    with pytest.raises(ValueError, match="video cannot be scored"):
        processor.video_processor([[noise(0)]])


@needs_no_torchvision
def test_a_folder_of_older_files_loads(family_folder, tmp_path):
    """As on the hub: preprocessor_config.json for images, with or without one for videos."""
    for file in family_folder("qwen2_5_vl").iterdir():
        if file.name != "processor_config.json":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    image = {"image_processor_type": "Qwen2VLImageProcessorFast", "patch_size": 14, "merge_size": 2}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image | {"processor_class": "Qwen2_5_VLProcessor"}))
    processor = load_processor(str(tmp_path))
    assert image_backend(processor) == "PIL" and type(processor).__name__ == "Qwen2_5_VLProcessor"
    (tmp_path / "video_preprocessor_config.json").write_text(
        json.dumps({"video_processor_type": "Qwen2VLVideoProcessor"})
    )
    assert load_processor(str(tmp_path)).video_processor.to_dict()["video_processor_type"] == "Qwen2VLVideoProcessor"


def test_another_image_back_end_is_said_in_one_line(reward, tmp_path, caplog):
    scorer = RewardScorer.from_pretrained(reward, device="cpu", rows="separate")
    assert image_backend(scorer.processor) in ("PIL", "torchvision") and image_backend(scorer.collator.tokenizer) == ""
    recorded = contract.record(scorer)
    caplog.clear()
    contract.check(scorer, recorded, "it")
    assert not caplog.records
    recorded.versions["images"] = "torchvision" if recorded.versions["images"] == "PIL" else "PIL"
    contract.check(scorer, recorded, "it")
    [record] = caplog.records
    assert "it: pictures were scaled by" in record.getMessage() and record.levelno == logging.WARNING


BROKEN = (
    "operator torchvision::nms does not exist",
    "Could not load /x/torchvision/_C.so: undefined symbol: _ZN3c10",
    "Couldn't load custom C++ ops torchvision::roi_align",
)


@pytest.mark.parametrize("text", BROKEN)
def test_a_torchvision_that_does_not_fit_torch_is_named(text):
    with pytest.raises(ModuleNotFoundError) as caught:
        try:
            raise RuntimeError(text)
        except RuntimeError as error:
            raise ModuleNotFoundError("Could not import module 'PreTrainedModel'") from error
    assert "pip uninstall torchvision" in str(broken_torchvision(caught.value))

    def load():
        with loading("model", "some/model", ()):
            raise RuntimeError(text)

    refused(load, "torchvision does not fit torch", "pip uninstall torchvision")
    assert broken_torchvision(UserError("install torchvision")) is None


def test_every_command_names_a_broken_torchvision(tmp_path):
    package = tmp_path / "torchvision"
    package.mkdir()
    (package / "__init__.py").write_text(f"raise RuntimeError({BROKEN[0]!r})")
    info = tmp_path / "torchvision-0.20.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: torchvision\nVersion: 0.20.0\n")
    done = subprocess.run(
        [sys.executable, "-m", "rovrm.check", "model=rovrm/world/tiny-llava"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
    )
    assert done.returncode == 2
    assert (
        done.stderr.startswith("rovrm.check: error: the installed torchvision does not fit")
        and done.stderr.count("\n") == 1
    )
