"""Second moments on disk: a pass goes on where it stopped, and what is damaged or of something else is refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.close import assert_close
from tests.curvature.oracles import setting

from holdfast.core.errors import ConfigError, DataError
from holdfast.curvature.moments import load, moments
from holdfast.curvature.records import save


def stop_at(model: Any, batch: int) -> Any:
    """Interrupt the forward with this number, from 1."""
    calls = Counter[str]()

    def hook(*_: Any) -> None:
        calls.update(["forward"])
        if calls["forward"] == batch:
            raise KeyboardInterrupt

    return model.register_forward_pre_hook(hook), calls


@pytest.mark.parametrize("save_every", [1, 2])
def test_a_resumed_pass_reads_what_is_left_and_equals_an_uninterrupted_one(tmp_path: Path, save_every: int) -> None:
    loaded, rows, layers = setting()
    whole = moments(loaded, rows, layers, batch_size=2)
    options: dict[str, Any] = {"batch_size": 2, "path": tmp_path / "moments", "save_every": save_every}
    handle, _ = stop_at(loaded.model, 4)
    with pytest.raises(KeyboardInterrupt):
        moments(loaded, rows, layers, **options)
    handle.remove()
    kept = load(tmp_path / "moments")
    done = 3 - 3 % save_every
    assert (kept.rows_done, kept.complete) == (2 * done, False)

    handle, calls = stop_at(loaded.model, -1)
    resumed = moments(loaded, rows[::-1], layers, **options)
    assert calls["forward"] == 5 - done
    for group, moment in whole.items():
        assert torch.equal(resumed[group].matrix, moment.matrix)
        assert resumed[group].tokens == moment.tokens

    again = moments(loaded, rows, layers, **options)
    assert calls["forward"] == 5 - done
    assert load(tmp_path / "moments").complete
    assert all(torch.equal(again[group].matrix, moment.matrix) for group, moment in whole.items())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model": "llama-1"}, "model tiny-llama-1 instead of tiny-llama-0"),
        ({"rows": 5}, r"rows \w{12}\.\.\. instead of \w{12}\.\.\.; row_count 9 instead of 5"),
        ({"tokens": "prompt"}, "tokens all instead of prompt"),
        ({"skip_bos": True}, "skip_bos False instead of True"),
        ({"dtype": torch.float64}, "dtype float32 instead of float64"),
        ({"layers": "layers.1.*"}, r"groups layers.0.attention_input, .* \(8\) instead of layers.1.* \(4\)"),
    ],
)
def test_moments_of_something_else_are_not_reused(tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    loaded, rows, layers = setting()
    saved = replace(loaded, fingerprint="tiny-llama-1") if "model" in change else loaded
    moments(saved, rows, layers, path=tmp_path / "moments")
    before = (tmp_path / "moments" / "moments.json").read_text()
    rows, layers = rows[: change.pop("rows", None)], layers.select(change.pop("layers", None))
    change.pop("model", None)
    with pytest.raises(ConfigError, match=f"made from something else: got {sentence}"):
        moments(loaded, rows, layers, **change, path=tmp_path / "moments")
    assert (tmp_path / "moments" / "moments.json").read_text() == before


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-5] ^= 1
    path.write_bytes(content)


def forget_tokens(path: Path) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tokens": {}}))


@pytest.mark.parametrize(
    ("file", "damage", "sentence"),
    [
        ("moments.safetensors", flip, "damaged: got moments.safetensors with SHA-256"),
        ("moments.safetensors", Path.unlink, "Cannot read moments in .*FileNotFoundError"),
        ("moments.json", forget_tokens, "Cannot read moments in .*KeyError"),
        ("moments.json", lambda path: path.write_text("{"), "Cannot read moments in .*JSONDecodeError"),
    ],
)
def test_a_damaged_folder_is_refused(tmp_path: Path, file: str, damage: Any, sentence: str) -> None:
    loaded, rows, layers = setting()
    moments(loaded, rows, layers, path=tmp_path / "moments")
    damage(tmp_path / "moments" / file)
    with pytest.raises(DataError, match=sentence):
        moments(loaded, rows, layers, path=tmp_path / "moments")


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    loaded, rows, layers = setting()
    (tmp_path / "thesis.txt").write_text("ten years")
    with pytest.raises(DataError, match="Cannot read moments"):
        moments(loaded, rows, layers, path=tmp_path)
    moments(loaded, rows, layers, path=tmp_path / "moments")
    with pytest.raises(DataError, match="got something else there"):
        save(tmp_path, load(tmp_path / "moments"))
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    loaded, rows, layers = setting()
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"Cannot save moments in .*file/moments"):
        moments(loaded, rows, layers, path=tmp_path / "file" / "moments")


def test_sums_that_a_kernel_left_asymmetric_are_made_symmetric_at_the_end(tmp_path: Path) -> None:
    loaded, rows, layers = setting()
    expected = moments(loaded, rows, layers)["layers.0.mlp_input"].matrix
    handle, _ = stop_at(loaded.model, 2)
    options: dict[str, Any] = {"batch_size": 4, "path": tmp_path / "moments", "save_every": 1}
    with pytest.raises(KeyboardInterrupt):
        moments(loaded, rows, layers, **options)
    handle.remove()
    kept = load(tmp_path / "moments")
    kept.moments["layers.0.mlp_input"].matrix[0, 1] += 1.0
    save(tmp_path / "moments", kept)
    found = moments(loaded, rows, layers, **options)["layers.0.mlp_input"].matrix
    assert torch.equal(found, found.T)
    assert_close(found[0, 1] - expected[0, 1], 0.5)
