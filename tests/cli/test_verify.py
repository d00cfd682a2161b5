"""``holdfast verify certificate``: exit 0 for what the files bear out, 1 for one flipped bit, 2 for no certificate."""

import json
from pathlib import Path

import pytest
from tests.methods.test_rotation_certificate import certified, flip_a_bit

from holdfast.cli.main import main


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run with one held training, ``tuned``."""
    out = tmp_path_factory.mktemp("run")
    certified(out)
    return out


def verify(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as stop:
        main(["verify", "certificate", *words])
    said = capsys.readouterr()
    return int(stop.value.code or 0), said.out, said.err


@pytest.mark.parametrize("folder", [".", "tuned"])
def test_a_run_and_a_training_of_it_are_verified(run: Path, folder: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verify(capsys, str(run / folder))
    assert code == 0
    assert out.startswith("tuned: verified. 5 layers are rebuilt bit for bit; largest leak into what is frozen ")


def test_json_has_every_layer_and_nothing_else(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = verify(capsys, str(run), "--json")
    found = json.loads(out)["tuned"]
    stated = json.loads((run / "tuned" / "certificate.json").read_text())["layers"]
    assert (code, found["verified"], found["problems"], found["layers"]) == (0, True, [], stated)


@pytest.mark.parametrize(
    ("file", "part", "what"),
    [
        ("tuned/model/model.safetensors", "q_proj", "result"),
        ("tuned/model/model.safetensors", "embed_tokens", "result"),
        ("mask/plan/basis/layers.0.attention_input.safetensors", "vectors", "plan"),
        ("mask/plan/mask.safetensors", "", "plan"),
        ("tuned/held/coordinates.safetensors", "", "coordinates"),
    ],
)
def test_one_flipped_bit_is_named_and_exits_with_1(
    run: Path, file: str, part: str, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = (run / file).read_bytes()
    flip_a_bit(run / file, part)
    try:
        code, out, _ = verify(capsys, str(run))
        assert code == 1
        head, first, *others = out.splitlines()
        count = 1 + len(others)
        assert head == f"tuned: NOT verified, {count} problem{'s' if others else ''}"
        assert first.strip().startswith(f"{what} ({run / file}): got ")
        assert others or what == "plan"
        code, out, _ = verify(capsys, str(run), "--json")
        assert (code, json.loads(out)["tuned"]["verified"]) == (1, False)
    finally:
        (run / file).write_bytes(kept)


def test_a_folder_without_a_certificate_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, errors = verify(capsys, str(tmp_path))
    assert (code, out) == (2, "")
    assert "holds no certificate.json, expected the folder of a run or of a held training." in errors
    (tmp_path / "certificate.json").write_text("{}")
    code, _, errors = verify(capsys, str(tmp_path))
    assert code == 2
    assert errors.startswith("holdfast: Cannot read a certificate in ")
