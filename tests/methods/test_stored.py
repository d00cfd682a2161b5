"""What every plan on disk is held to, apart from what is in it."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from holdfast.core.errors import ConfigError, DataError
from holdfast.methods.causal.config import CausalConfig
from holdfast.methods.stored import HEADER, read_header, reading, write_header, write_tensors


def test_settings_that_are_refused_are_named_as_they_are_in_a_recipe(tmp_path: Path) -> None:
    write_header(tmp_path, {"config": {"partners": 0}})
    with (
        pytest.raises(DataError, match=r"read a plan in .*: partners: should be .* \(got 0\)\. Do: plan again\."),
        reading(tmp_path, "a plan", CausalConfig),
    ):
        CausalConfig(**read_header(tmp_path)["config"])


def test_what_is_absent_is_named(tmp_path: Path) -> None:
    write_header(tmp_path, {"config": {}}, "critic.json")
    with (
        pytest.raises(DataError, match=r"Cannot read a critic in .*: it has no 'model'\. Do: make it again\."),
        reading(tmp_path, "a critic", CausalConfig, "make it again"),
    ):
        read_header(tmp_path, "critic.json")["model"]
    with pytest.raises(DataError, match=HEADER), reading(tmp_path, "a plan", CausalConfig):
        read_header(tmp_path)


def test_an_error_that_says_what_to_do_passes_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^as it is$"), reading(tmp_path, "a plan", CausalConfig):
        raise ConfigError("as it is")


def test_tensors_of_one_storage_are_written_whole_and_apart(tmp_path: Path) -> None:
    whole = torch.arange(6.0, requires_grad=True).view(2, 3)
    tensors = {"whole": whole, "again": whole, "turned": whole.T, "row": whole[1]}
    write_tensors(tmp_path / "t.safetensors", tensors)
    found = load_file(tmp_path / "t.safetensors")
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())
