"""Every command that takes a head takes one of every format."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.draft.published_heads import FORMATS, Target

from arborist.cli import generate, servable_draft, serve, workers
from arborist.cli.main import main
from arborist.cli.servable_draft import convert_elsewhere, with_servable_draft
from arborist.common.cache_config import cache_directory
from arborist.common.config import ArboristConfig, load_config
from arborist.core.errors import MismatchError
from arborist.draft.published_files import PublishedFiles

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "eagle3"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """This test's cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    return cache_directory()


def settings_for(head: Path, target: Path) -> ArboristConfig:
    """The configuration that names a pair."""
    return load_config(None, {"target.model": str(target), "draft.model": str(head)})


def test_a_head_is_converted_in_another_process(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This process opens no pickled file, says in one line what was done, and keeps the name."""
    target = Target()
    head, model = FORMATS["official_eagle3"](target).write(tmp_path / "h"), tmp_path / "t"
    target.write(model)

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a pickled file was opened")

    monkeypatch.setattr(torch, "load", refuse)
    said: list[str] = []
    log = logging.getLogger(servable_draft.__name__)
    monkeypatch.setattr(log, "info", lambda text, *values: said.append(text % values))
    settings = with_servable_draft(settings_for(head, model))

    assert Path(settings.draft.model or "").parent == cache / "heads"
    assert settings.draft.served_name() == "h"
    assert said == [f"head {head}: converted into {settings.draft.model}"]


def test_what_the_other_process_refuses_is_one_line(tmp_path: Path) -> None:
    """The tensor is named as by `import-head`, the head by the user's own name."""
    target = Target()
    head, model = FORMATS["official_eagle3"](target).write(tmp_path / "h"), tmp_path / "t"
    target.write(model)
    state = torch.load(head / "pytorch_model.bin", weights_only=True)
    state["surplus.weight"] = torch.zeros(1)
    torch.save(state, head / "pytorch_model.bin")

    with pytest.raises(MismatchError) as caught:
        convert_elsewhere(PublishedFiles(head), tmp_path / "out", str(model), None)

    assert caught.value.message.startswith(f"cannot convert head {head}: ")
    assert "surplus.weight" in caught.value.message
    assert not (tmp_path / "out").exists()


def test_a_head_that_workers_read_is_served_as_it_is(cache: Path) -> None:
    """Nothing is written for it, nor for the embedded pair."""
    settings = with_servable_draft(settings_for(GOLDEN / "eagle_head", GOLDEN / "target"))

    assert settings.draft.model == str(GOLDEN / "eagle_head")
    assert with_servable_draft(ArboristConfig()) == ArboristConfig()
    assert not cache.exists()


def test_a_hub_head_is_pinned_to_its_commit(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that starts later reads the same commit even if the branch has moved."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "snapshots" / commit
    snapshot.parent.mkdir()
    snapshot.symlink_to(GOLDEN / "eagle_head")
    asked = []

    def download(source: str, name: str, *, revision: str | None) -> str:
        asked.append(revision)
        path = snapshot / name
        if not path.is_file():
            from huggingface_hub.errors import EntryNotFoundError

            raise EntryNotFoundError(name)
        return str(path)

    monkeypatch.setattr("arborist.draft.published_files.hf_hub_download", download)
    flags = {"target.model": str(GOLDEN / "target"), "draft.model": "some/head"}
    settings = with_servable_draft(load_config(None, {**flags, "draft.revision": "main"}))

    assert (settings.draft.model, settings.draft.revision) == ("some/head", commit)
    assert asked[0] == "main"
    assert set(asked[1:]) == {commit}


@pytest.mark.parametrize("flag", ["--draft", "--draft-model"])
def test_serve_makes_its_draft_servable(flag: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names of the flag lead to what is served."""
    seen: list[ArboristConfig] = []

    def stop(settings: ArboristConfig) -> ArboristConfig:
        seen.append(settings)
        raise MismatchError("enough")

    monkeypatch.setattr(serve, "with_servable_draft", stop)

    with pytest.raises(SystemExit):
        main(["serve", flag, "some/head", "--draft-revision", "v1"])

    assert [(one.draft.model, one.draft.revision) for one in seen] == [("some/head", "v1")]


def test_serve_draft_serves_the_converted_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker is run with what came back; a target's start asks nothing."""
    served: list[Any] = []

    class Role:
        def run(self, settings: ArboristConfig) -> None:
            served.append(settings.draft.model)

    def make(settings: ArboristConfig) -> ArboristConfig:
        draft = settings.draft.model_copy(update={"model": "converted"})
        return settings.model_copy(update={"draft": draft})

    monkeypatch.setattr(workers, "with_servable_draft", make)
    monkeypatch.setattr(workers, "import_module", lambda name: Role())
    for setup in ("apply_thread_environment", "configure_logging"):
        monkeypatch.setattr(workers, setup, lambda *_: None)

    for command in ("serve-draft", "serve-target"):
        with pytest.raises(SystemExit):
            main([command])

    assert served == ["converted", None]


@pytest.mark.parametrize(
    "command",
    [
        ("generate", "--local", "--prompt-ids", "1,2"),
        ("trace", "--prompt-ids", "1,2"),
        ("bench", "--prompts", "questions.jsonl"),
    ],
    ids=lambda command: command[0],
)
def test_what_decodes_in_this_process_takes_every_head_too(
    command: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The head goes through the same cache as a served one, and one line says what was done."""
    seen: list[ArboristConfig] = []

    def convert(settings: ArboristConfig, *, say: Callable[[str], object]) -> ArboristConfig:
        seen.append(settings)
        say("head some/head: converted into a folder")
        raise MismatchError("enough")

    monkeypatch.setattr(servable_draft, "with_servable_draft", convert)
    monkeypatch.setattr(generate, "with_servable_draft", convert)

    with pytest.raises(SystemExit):
        main([*command, "--target", "some/target", "--draft", "some/head"])

    assert [(one.target.model, one.draft.model) for one in seen] == [("some/target", "some/head")]
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "head some/head: converted into a folder"


def test_a_head_that_is_not_used_is_not_converted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without speculation nobody asks for it."""
    monkeypatch.setattr(generate, "with_servable_draft", lambda *_, **__: pytest.fail("asked"))
    pair = ("--target", str(GOLDEN / "target"), "--draft", "no/such/head")

    with pytest.raises(SystemExit) as caught:
        main(["generate", "--local", *pair, "--prompt-ids", "1", "--speculation", "off"])

    assert not caught.value.code


def test_a_language_model_is_served_as_it_is(cache: Path) -> None:
    """Nothing is converted, nothing is written, and it keeps its name."""
    target = GOLDEN / "target"
    settings = with_servable_draft(settings_for(target, target))

    assert settings.draft.model == str(target)
    assert settings.draft.served_name() == "target"
    assert not cache.exists()
