"""Links out of a folder that came from others, and those that are honest."""

import pytest

from u2a.data.load import load_negatives
from u2a.models.source import check_source
from u2a.storage.links import refuse_links_out
from u2a.types import UserError


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "elsewhere" / "secret"
    path.parent.mkdir()
    path.write_text("SESAME")
    return path


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "folder"
    path.mkdir()
    return path


@pytest.mark.parametrize("relative", [False, True])
def test_a_link_out_is_refused_by_name(folder, secret, relative):
    (folder / "config.json").symlink_to("../elsewhere/secret" if relative else secret)
    with pytest.raises(UserError, match=r"config\.json is a link that leads out of .*folder: put the file"):
        refuse_links_out(folder)


def test_a_link_to_a_folder_or_to_nothing_is_refused(folder, secret):
    (folder / "adapter").symlink_to(secret.parent)
    with pytest.raises(UserError, match="adapter is a link"):
        refuse_links_out(folder)
    (folder / "adapter").unlink()
    (folder / "run.log").symlink_to(secret.parent / "not there yet")
    with pytest.raises(UserError, match=r"run\.log is a link"):
        refuse_links_out(folder)


def test_links_in_named_sub_folders_are_looked_at(folder, secret):
    (folder / "cells").mkdir()
    (folder / "cells" / "a.json").symlink_to(secret)
    refuse_links_out(folder)
    with pytest.raises(UserError, match=r"cells/a\.json is a link"):
        refuse_links_out(folder, below=("cells", "models"))


def test_a_loop_and_a_link_within_do_no_harm(folder):
    (folder / "a").write_text("a")
    (folder / "b").symlink_to("a")
    refuse_links_out(folder)
    (folder / "loop").symlink_to("loop")
    refuse_links_out(folder)


def test_honest_links_pass(tmp_path, folder):
    """Weights that lie on another disk, a folder behind a link, and a snapshot of the Hub's cache."""
    weights = tmp_path / "disk" / "model.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"")
    (folder / "model.safetensors").symlink_to(weights)
    (tmp_path / "name").symlink_to(folder)
    refuse_links_out(tmp_path / "name")
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    blob = tmp_path / "models--org--name" / "blobs" / "0123"
    snapshot.mkdir(parents=True)
    blob.parent.mkdir()
    blob.write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/0123")
    refuse_links_out(snapshot)


def test_weights_are_no_way_to_another_kind_of_file(folder, secret):
    (folder / "model.safetensors").symlink_to(secret)
    with pytest.raises(UserError, match=r"model\.safetensors is a link"):
        refuse_links_out(folder)


def test_a_chat_template_that_is_a_link_is_not_read(model_folder, secret):
    """It would be saved beside the adapter, and pushed with it."""
    (model_folder / "chat_template.jinja").unlink(missing_ok=True)
    (model_folder / "chat_template.jinja").symlink_to(secret)
    with pytest.raises(UserError, match=r"chat_template\.jinja is a link"):
        check_source(str(model_folder))
    (model_folder / "chat_template.jinja").unlink()
    (model_folder / "additional_chat_templates").mkdir()
    (model_folder / "additional_chat_templates" / "tools.jinja").symlink_to(secret)
    with pytest.raises(UserError, match=r"tools\.jinja is a link"):
        check_source(str(model_folder))


def test_a_data_folder_with_a_link_is_not_read(folder, secret):
    (folder / "rows.txt").symlink_to(secret)
    with pytest.raises(UserError, match=r"rows\.txt is a link"):
        load_negatives(folder)
