"""
The folder of an embedded stack: which ports it gets, and what a reset deletes.
"""

import json
import socket
import tempfile

import pytest

from everbus.compose import stack_folder
from everbus.compose.stack_folder import (
    DefaultPorts,
    StackError,
    delete_data,
    free_port,
    remembered_ports,
)


@pytest.fixture
def usual(monkeypatch):
    """
    Default ports that are free here and now.
    """
    ports = {"edge": free_port()}
    monkeypatch.setattr(stack_folder, "DEFAULT_PORTS", ports)
    return ports


def test_a_usual_port_is_taken_while_it_is_free(tmp_path, usual):
    assert remembered_ports(tmp_path, ["edge"], usual) == usual
    assert json.loads((tmp_path / "ports.json").read_text()) == usual


def test_a_usual_port_in_use_is_left_to_its_user(tmp_path, usual):
    """
    Also when this folder had it before: two projects take turns without an error.
    """
    remembered_ports(tmp_path, ["edge"], usual)

    with socket.create_server(("127.0.0.1", usual["edge"])):
        other = remembered_ports(tmp_path, ["edge"], usual)

    assert other["edge"] != usual["edge"]
    assert remembered_ports(tmp_path, ["edge"], usual) == other


def test_without_the_right_to_them_no_usual_port_is_taken(tmp_path, usual):
    remembered_ports(tmp_path, ["edge"], usual)

    assert remembered_ports(tmp_path, ["edge"])["edge"] != usual["edge"]


def test_any_other_stored_port_in_use_is_an_error(tmp_path, usual):
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        port = stranger.getsockname()[1]
        (tmp_path / "ports.json").write_text(json.dumps({"edge": port}))

        with pytest.raises(StackError, match=f"port {port} of edge"):
            remembered_ports(tmp_path, ["edge"], usual)


def test_one_stack_of_a_user_has_the_usual_ports(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first, second = DefaultPorts(), DefaultPorts()

    assert (first.ours, second.ours) == (True, False)
    second.close()
    first.close()
    third = DefaultPorts()
    assert third.ours
    third.close()


def test_a_lock_that_cannot_be_had_is_no_error(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))
    right = DefaultPorts()

    assert not right.ours
    right.close()


def test_a_reset_goes_by_names_and_follows_no_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_text("mine")
    data = tmp_path / "data"
    (data / "valkey" / "deep").mkdir(parents=True)
    (data / "nanio").symlink_to(outside)
    for name in ("valkey.conf", "secrets.json", "env", "topology", "notes.md"):
        (data / name).write_text("x")

    delete_data(data, ["valkey", "nanio"])

    assert [path.name for path in data.iterdir()] == ["notes.md"]
    assert (outside / "precious").exists()


def test_a_reset_leaves_a_folder_alone_where_no_stack_ran(tmp_path):
    (tmp_path / "valkey").mkdir()

    delete_data(tmp_path, ["valkey"])

    assert (tmp_path / "valkey").exists()


def test_a_reset_deletes_no_folder_that_has_the_name_of_a_file(tmp_path):
    """
    `env` is also what many call a virtual environment.
    """
    (tmp_path / "topology").write_text("server")
    (tmp_path / "env").mkdir()

    delete_data(tmp_path, ["valkey"])

    assert [path.name for path in tmp_path.iterdir()] == ["env"]
