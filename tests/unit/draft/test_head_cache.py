"""Heads of other formats are converted once; those that workers can read are left alone."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.unit.draft.published_heads import FORMATS, Target

from arborist.common.model_files import ModelFiles
from arborist.core.errors import InvalidArgumentError, MismatchError
from arborist.draft.checkpoint import is_servable, read_head
from arborist.draft.head_cache import ORIGIN, HeadCache
from arborist.draft.import_head import import_head
from arborist.draft.published_files import PublishedFiles


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """A target's folder."""
    return Target().write(tmp_path / "target")


@pytest.fixture
def cache(tmp_path: Path, target: Path) -> HeadCache:
    """An empty cache that converts in this process and counts in `converted`."""
    return HeadCache(tmp_path / "cache", converter(target))


converted: list[str] = []


@pytest.fixture(autouse=True)
def nothing_converted() -> None:
    """Forgets what an earlier test converted."""
    converted.clear()


def converter(target: Path) -> Callable[[PublishedFiles, Path], None]:
    """Converts for a target and counts."""

    def convert(files: PublishedFiles, folder: Path) -> None:
        converted.append(files.source)
        import_head(files.folder, folder, target)

    return convert


@pytest.mark.parametrize("name", sorted(FORMATS))
def test_every_format_becomes_what_workers_read(
    name: str, tmp_path: Path, target: Path, cache: HeadCache
) -> None:
    """Whatever comes in, a worker can load what comes out, and the source is not touched."""
    head = FORMATS[name](Target()).write(tmp_path / "head")
    before = {path.name: path.read_bytes() for path in head.iterdir()}

    found = cache.servable(str(head), str(target))

    assert read_head(ModelFiles(found.model), torch.float32).head is not None
    assert {path.name: path.read_bytes() for path in head.iterdir()} == before
    assert (found.line == "") == (found.model == str(head)) == (not converted)


def test_a_pickled_head_is_converted_only_once(
    tmp_path: Path, target: Path, cache: HeadCache
) -> None:
    """The second start finds it, and the folder says where it came from."""
    head = FORMATS["official_eagle3"](Target()).write(tmp_path / "head")
    assert (head / "pytorch_model.bin").is_file()

    first = cache.servable(str(head), str(target))
    second = cache.servable(str(head), str(target))

    assert converted == [str(head)]
    assert first.model == second.model != str(head)
    assert "converted into" in first.line
    assert "converted before" in second.line
    assert len(first.line.splitlines()) == 1
    origin = json.loads((Path(first.model) / ORIGIN).read_text())
    assert origin == {
        "source": str(head),
        "revision": None,
        "digest": PublishedFiles(head).digest(),
    }
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [Path(first.model).name]


def test_changed_files_and_another_target_are_converted_anew(
    tmp_path: Path, target: Path, cache: HeadCache
) -> None:
    """The key holds the digests of the head's files and of the target's tables."""
    head = FORMATS["official_eagle3"](Target()).write(tmp_path / "head")
    first = cache.servable(str(head), str(target)).model
    state = torch.load(head / "pytorch_model.bin", weights_only=True)
    state["norm.weight"] += 1
    torch.save(state, head / "pytorch_model.bin")
    changed = cache.servable(str(head), str(target)).model
    tables = load_file(target / "model.safetensors")
    tables["lm_head.weight"] += 1
    save_file(tables, target / "model.safetensors", {"format": "pt"})
    other = cache.servable(str(head), str(target)).model

    assert len({first, changed, other}) == 3
    assert len(converted) == 3


def test_a_refused_head_leaves_nothing(tmp_path: Path, target: Path, cache: HeadCache) -> None:
    """The tensor is named and no folder is left that a later start could take."""
    head = FORMATS["official_eagle3"](Target()).write(tmp_path / "head")
    state = torch.load(head / "pytorch_model.bin", weights_only=True)
    state.pop("midlayer.hidden_norm.weight")
    torch.save(state, head / "pytorch_model.bin")

    with pytest.raises(MismatchError, match=r"midlayer\.hidden_norm\.weight is missing"):
        cache.servable(str(head), str(target))

    assert list((tmp_path / "cache").iterdir()) == []


def test_a_head_converted_meanwhile_by_another_process_is_used(
    tmp_path: Path, target: Path
) -> None:
    """Two starts at a time end with one folder."""
    head = FORMATS["official_eagle3"](Target()).write(tmp_path / "head")
    folder = tmp_path / "cache"
    faster = HeadCache(folder, converter(target))

    def convert(files: PublishedFiles, made: Path) -> None:
        faster.servable(files.source, str(target))
        converter(target)(files, made)

    found = HeadCache(folder, convert).servable(str(head), str(target))

    assert [path.name for path in folder.iterdir()] == [Path(found.model).name]


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, target: Path) -> None:
    """The user is told which folder and how to move it."""
    head = FORMATS["official_eagle3"](Target()).write(tmp_path / "head")
    (tmp_path / "file").write_text("")
    cache = HeadCache(tmp_path / "file" / "cache", converter(target))

    with pytest.raises(InvalidArgumentError, match="XDG_CACHE_HOME"):
        cache.servable(str(head), str(target))


def test_layers_named_in_another_formats_words_need_the_import(tmp_path: Path) -> None:
    """Official names alone do not make a head servable: the layer list would be overlooked."""
    pair = Path(__file__).resolve().parents[2] / "golden" / "eagle3" / "eagle_head"
    head = tmp_path / "head"
    head.mkdir()
    (head / "model.safetensors").symlink_to(pair / "model.safetensors")
    config = json.loads((pair / "config.json").read_text())
    (head / "config.json").write_text(
        json.dumps({**config, "eagle_aux_hidden_state_layer_ids": [1, 3, 4]})
    )

    assert is_servable(ModelFiles(pair))
    assert not is_servable(ModelFiles(head))
