import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.methods.planned import ELEMENT, FEW
from tests.training.helpers import config, examples
from tests.zoo import tiny_folder

from holdfast.core.errors import DataError, NumericsError
from holdfast.methods.rotation.apply import apply
from holdfast.methods.rotation.certificate import FILE, Files, certify, verify
from holdfast.methods.rotation.config import RotationConfig
from holdfast.methods.rotation.plan import plan
from holdfast.methods.rotation.store import save_plan
from holdfast.models.load import ModelConfig, load_model
from holdfast.training.loop import HELD, HELD_FILE, train


def certified(run: Path, dtype: str = "float32", plan_keys: dict[str, Any] | None = None, **keys: Any) -> Files:
    """A base, its plan, a held training and the certificate, all under ``run``."""
    base = tiny_folder(run, "llama")
    source = ModelConfig(source=str(base), dtype=dtype)
    loaded = load_model(source)
    if dtype != "float32":
        loaded.model.save_pretrained(base)
        loaded = load_model(ModelConfig(source=str(base)))
    made = plan(RotationConfig(frozen_share=0.25, layers=FEW, **(plan_keys or {})), loaded, examples(6, seed=7))
    save_plan(made, run / "mask" / "plan")
    settings = config(steps=2, batch_size=4, weight_decay=0.1, **keys)
    result = train(loaded, examples(16), settings, out=run / "tuned", constraint=apply(loaded, made))
    files = Files(base, run / "mask" / "plan", run / "tuned" / HELD / HELD_FILE, result.folder)
    certify(run / "tuned", files)
    return files


def flip_a_bit(path: Path, part: str = "") -> None:
    """Of the first tensor whose name has ``part``, in its last byte."""
    tensors = load_file(path)
    name = next(name for name in tensors if part in name)
    bytes_ = tensors[name].view(torch.uint8).clone()
    bytes_.view(-1)[-1] ^= 1
    tensors[name] = bytes_.view(tensors[name].dtype)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("dtype", "plan_keys", "keys"),
    [
        ("float32", {}, {}),
        ("float32", ELEMENT, {}),
        ("bfloat16", {}, {}),
        ("float32", {}, {"params": "lora"}),
        ("float32", ELEMENT, {"optimizer": "muon"}),
    ],
)
def test_a_held_training_is_certified_and_verified(
    tmp_path: Path, dtype: str, plan_keys: dict[str, Any], keys: dict[str, Any]
) -> None:
    certified(tmp_path, dtype, plan_keys, **keys)
    proofs, problems = verify(tmp_path / "tuned")
    assert problems == []
    assert len(proofs) == 5
    for proof in proofs:
        assert proof.frozen == round(0.25 * proof.of)
        assert proof.frozen_moved == 0
        assert proof.change > 1e-4
        assert 0 < proof.drift < 1
        assert proof.leak < (1e-6 if dtype == "float32" else 1e-2)


@pytest.mark.parametrize(
    ("plan_keys", "keys"), [({}, {}), (ELEMENT, {}), ({}, {"params": "lora"})], ids=["column", "element", "lora"]
)
def test_one_flipped_bit_anywhere_is_a_problem(tmp_path: Path, plan_keys: dict[str, Any], keys: dict[str, Any]) -> None:
    files = certified(tmp_path, "float32", plan_keys, **keys)
    adapter = files.result / "adapter_model.safetensors"
    weights = [("result", files.result / "model.safetensors", part) for part in ("layers.0.self_attn.q_proj", "embed")]
    factors = [
        ("result", adapter, "lora_A"),
        ("result", adapter, "lora_B"),
        ("coordinates", files.coordinates, "start"),
    ]
    for what, path, part in (
        *(factors if keys else weights),
        ("plan", files.plan / "basis.safetensors", "vectors/"),
        ("plan", files.plan / "basis.safetensors", "moments/"),
        ("plan", files.plan / "mask.safetensors", ""),
        ("coordinates", files.coordinates, "coordinates/"),
        ("base", files.base / "model.safetensors", "layers.0.self_attn.q_proj"),
        ("base", files.base / "model.safetensors", "embed"),
    ):
        kept = path.read_bytes()
        flip_a_bit(path, part)
        _, problems = verify(tmp_path / "tuned")
        assert [problem.what.split()[0] for problem in problems] == [what]
        path.write_bytes(kept)
    assert verify(tmp_path / "tuned")[1] == []


@pytest.mark.parametrize("plan_keys", [{}, ELEMENT], ids=["column", "element"])
def test_hashes_written_anew_do_not_hide_a_flipped_bit(tmp_path: Path, plan_keys: dict[str, Any]) -> None:
    """The bits are made again from base, plan and coordinates, so a forged certificate is refused too."""
    files = certified(tmp_path, "float32", plan_keys)
    for path, part in (
        (files.result / "model.safetensors", "layers.0.self_attn.q_proj"),
        (files.base / "model.safetensors", "layers.0.self_attn.q_proj"),
        (files.result / "model.safetensors", "embed_tokens"),
    ):
        kept = path.read_bytes()
        flip_a_bit(path, part)
        with pytest.raises(NumericsError, match="Cannot certify"):
            certify(tmp_path / "tuned", files)
        path.write_bytes(kept)


def test_a_figure_that_was_written_by_hand_is_a_problem(tmp_path: Path) -> None:
    certified(tmp_path)
    path = tmp_path / "tuned" / FILE
    document = json.loads(path.read_text())
    document["layers"][0]["leak"] = 0.0
    path.write_text(json.dumps(document))
    _, problems = verify(tmp_path / "tuned")
    assert [problem.what for problem in problems] == [f"figures of {document['layers'][0]['layer']}"]


def test_a_run_can_be_moved_and_a_missing_certificate_is_one_sentence(tmp_path: Path) -> None:
    certified(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert verify(tmp_path / "there" / "tuned")[1] == []
    with pytest.raises(DataError, match="Cannot read a certificate"):
        verify(tmp_path / "there")
