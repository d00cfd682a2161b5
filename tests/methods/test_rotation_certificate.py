import gc
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.methods.planned import ELEMENT, FEW
from tests.training.helpers import config, examples
from tests.zoo import tiny, tiny_folder
from torch import Tensor

from holdfast.core.errors import ConfigError, DataError, NumericsError
from holdfast.methods.rotation.apply import apply
from holdfast.methods.rotation.certificate import FILE, certify, certify_files, verify
from holdfast.methods.rotation.config import RotationConfig
from holdfast.methods.rotation.maths import output_drift
from holdfast.methods.rotation.plan import plan
from holdfast.methods.rotation.proof import Files, examine
from holdfast.methods.rotation.store import save_plan
from holdfast.models.load import ModelConfig, load_model
from holdfast.training.loop import HELD, HELD_FILE, train


def certified(
    run: Path, dtype: str = "float32", plan_keys: dict[str, Any] | None = None, base: Path | None = None, **keys: Any
) -> Files:
    """A base, its plan, a held training and the certificate, all under ``run``; or the base elsewhere."""
    made_base = tiny_folder(run, "llama")
    if base is not None:
        base.parent.mkdir(parents=True, exist_ok=True)
        made_base.rename(base)
    base = base or made_base
    source = ModelConfig(source=str(base), dtype=dtype)
    loaded = load_model(source)
    if dtype != "float32":
        loaded.model.save_pretrained(base)
        loaded = load_model(ModelConfig(source=str(base)))
    made = plan(
        RotationConfig(**({"frozen_share": 0.25, "layers": FEW} | (plan_keys or {}))), loaded, examples(6, seed=7)
    )
    save_plan(made, run / "mask" / "plan")
    settings = config(steps=2, batch_size=4, weight_decay=0.1, **keys)
    result = train(loaded, examples(16), settings, out=run / "tuned", constraint=apply(loaded, made))
    files = Files(base, run / "mask" / "plan", run / "tuned" / HELD / HELD_FILE, result.folder)
    certify_files(run / "tuned", files)
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
        assert proof.frozen_moved == (0 if plan_keys else None)  # directions have no coordinate that could move
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
        ("result", adapter, "layers.0.self_attn.q_proj.lora_A"),
        ("result", adapter, "layers.0.self_attn.q_proj.lora_B"),
        ("coordinates", files.coordinates, "start"),
    ]
    for what, path, part in (
        *(factors if keys else weights),
        ("plan", files.plan / "basis" / "layers.0.attention_input.safetensors", "vectors"),
        ("plan", files.plan / "plan.json", ""),
        ("plan", files.plan / "mask.safetensors", ""),
        ("coordinates", files.coordinates, "coordinates/"),
        ("base", files.base / "model.safetensors", "layers.0.self_attn.q_proj"),
        ("base", files.base / "model.safetensors", "embed"),
    ):
        kept = path.read_bytes()
        if path.suffix == ".json":
            path.write_bytes(kept + b" ")
        else:
            flip_a_bit(path, part)
        _, problems = verify(tmp_path / "tuned")
        path.write_bytes(kept)
        assert problems[0].what == f"{what} ({path})"
        told = " ".join(problem.what for problem in problems)
        if "layers.0" in part:
            assert "q_proj" in told
            assert "layers.0" in told
            assert "layers.1" not in told
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
            certify_files(tmp_path / "tuned", files)
        path.write_bytes(kept)


def rewritten(run: Path, change: Callable[[dict[str, Any]], Any]) -> list[str]:
    """What verification says of a certificate whose text was changed."""
    path = run / "tuned" / FILE
    kept = path.read_text()
    document = json.loads(kept)
    change(document)
    path.write_text(json.dumps(document))
    _, problems = verify(run / "tuned")
    path.write_text(kept)
    return [problem.what for problem in problems]


def test_a_figure_or_a_layer_that_was_written_by_hand_is_a_problem(tmp_path: Path) -> None:
    certified(tmp_path)
    assert rewritten(tmp_path, lambda document: None) == []
    document = json.loads((tmp_path / "tuned" / FILE).read_text())
    first = document["layers"][0]
    figures = f"figures of {first['layer']}"
    for key in ("leak", "change", "drift", "moved_share", "frozen", "of"):
        assert rewritten(tmp_path, lambda made, key=key: made["layers"][0].update({key: 0})) == [figures], key
        assert rewritten(tmp_path, lambda made, key=key: made["layers"][0].pop(key)) == [figures], key
        longer = first[key] * (1 + 1e-5) if isinstance(first[key], float) else first[key] + 1
        assert rewritten(tmp_path, lambda made, k=key, v=longer: made["layers"][0].update({k: v})) == [figures], key
    assert rewritten(tmp_path, lambda made: made["layers"].pop(0)) == [figures]
    invented = {**first, "layer": "layers.99.fake"}
    assert rewritten(tmp_path, lambda made: made["layers"].append(invented)) == ["figures of layers.99.fake"]


def test_coordinates_that_moved_in_what_is_frozen_cannot_be_certified(tmp_path: Path) -> None:
    """The weights are those of the rule all the same, so that bits alone would not tell."""
    files = certified(tmp_path, "float32", ELEMENT)
    frozen = load_file(files.plan / "mask.safetensors")["layers.0.q_proj"]
    held = load_file(files.coordinates)
    held["coordinates/model.layers.0.self_attn.q_proj.weight"][frozen] = 0.004
    save_file(held, files.coordinates)
    proofs, problems = examine(files)
    assert {proof.layer: proof.frozen_moved for proof in proofs if proof.frozen_moved} == {
        "layers.0.q_proj": pytest.approx(0.004)
    }
    assert [str(problem) for problem in problems] == [
        "frozen coordinates of layers.0.q_proj: got a largest one of 0.004, expected exactly 0"
    ]
    with pytest.raises(NumericsError, match=r"Cannot certify .*: frozen coordinates of layers\.0\.q_proj"):
        certify_files(tmp_path / "tuned", files)


def _wide() -> list[Tensor]:
    """Every float64 tensor that is alive."""
    return [t for t in gc.get_objects() if isinstance(t, Tensor) and t.dtype == torch.float64]


@pytest.mark.parametrize("keys", [{}, {"params": "lora"}], ids=["full", "lora"])
def test_one_layer_is_measured_at_a_time(tmp_path: Path, keys: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    files = certified(tmp_path, "float32", {"layers": ()}, **keys)
    alive: list[int] = []
    others = {id(t) for t in _wide()}  # what other tests of the session left

    def counted(*given: Any) -> float:
        alive.append(sum({t.data_ptr(): t.numel() for t in _wide() if id(t) not in others}.values()))
        return output_drift(*given)

    monkeypatch.setattr("holdfast.methods.rotation.maths.output_drift", counted)
    proofs, problems = examine(files)
    assert (len(proofs), problems) == (14, [])
    largest = 64 * 64
    assert max(alive) <= 5 * largest


def test_a_training_from_python_is_certified_in_one_call(tmp_path: Path) -> None:
    base = tiny_folder(tmp_path, "llama")
    loaded = load_model(ModelConfig(source=str(base)))
    made = plan(RotationConfig(frozen_share=0.25, layers=FEW), loaded, examples(6, seed=7))
    result = train(loaded, examples(16), config(steps=2), out=tmp_path / "held", constraint=apply(loaded, made))
    proofs = certify(result, made, loaded)
    assert verify(tmp_path / "held") == (proofs, [])


def test_what_cannot_be_certified_from_python_is_one_sentence(tmp_path: Path) -> None:
    loaded = tiny("llama")
    made = plan(RotationConfig(frozen_share=0.25, layers=FEW), loaded, examples(6, seed=7))
    settings = config(steps=1)
    held = train(loaded, examples(4), settings, out=tmp_path / "held", constraint=apply(loaded, made))
    with pytest.raises(ConfigError, match="no folder holds the model that it began with"):
        certify(held, made, loaded)
    plain = train(tiny("llama"), examples(4), settings, out=tmp_path / "plain")
    with pytest.raises(DataError, match=r"Cannot certify .*got no held/coordinates.safetensors. Do: train with"):
        certify(plain, made, loaded)
    base = tiny_folder(tmp_path, "llama")
    cast = load_model(ModelConfig(source=str(base), dtype="bfloat16"))
    made = plan(RotationConfig(frozen_share=0.25, layers=FEW), cast, examples(6, seed=7))
    held = train(cast, examples(4), settings, out=tmp_path / "cast", constraint=apply(cast, made))
    with pytest.raises(ConfigError, match=r"got torch.bfloat16 for .*, expected the base's torch.float32"):
        certify(held, made, cast)


def test_a_base_is_found_where_it_now_lies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A base outside the run is named by its whole path, which is another one on another machine."""
    snapshot = Path("models--org--tiny", "snapshots", "abc")
    for place in ("package", "cache"):
        there = tmp_path / place / ("there" if place == "package" else snapshot)
        files = certified(tmp_path / place / "run", base=there)
        assert json.loads((tmp_path / place / "run" / "tuned" / FILE).read_text())["files"]["base"]["path"] == str(
            there
        )
        moved = tmp_path / "moved" / place / snapshot
        moved.parent.mkdir(parents=True)
        files.base.rename(moved)
        assert [p.what.split()[0] for p in verify(tmp_path / place / "run" / "tuned")[1]] == ["base", "files"]
        with monkeypatch.context() as patched:
            if place == "package":
                patched.setattr("holdfast.methods.rotation.certificate.lab_folder", lambda moved=moved: moved)
            else:
                patched.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "moved" / place))
            assert verify(tmp_path / place / "run" / "tuned")[1] == []


def test_a_run_can_be_moved_and_a_missing_certificate_is_one_sentence(tmp_path: Path) -> None:
    certified(tmp_path / "here")
    (tmp_path / "here").rename(tmp_path / "there")
    assert verify(tmp_path / "there" / "tuned")[1] == []
    with pytest.raises(DataError, match="Cannot read a certificate"):
        verify(tmp_path / "there")
