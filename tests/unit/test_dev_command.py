"""
The console's address, as `everbus dev` shows and opens it.
"""

import io

import pytest
from rich.console import Console

from everbus.compose import dev_command
from everbus.compose.dev_command import console_url

TOKEN = "a" * 300
ENVIRONMENT = {"EVERBUS_EDGE_URL": "http://127.0.0.1:18080", "EVERBUS_TOKEN": TOKEN}
ADDRESS = f"http://127.0.0.1:18080/console#token={TOKEN}"


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """
    The addresses that a browser was asked to open.
    """
    asked: list[str] = []
    monkeypatch.setattr(
        dev_command.webbrowser, "open", lambda url: asked.append(url) or True
    )
    return asked


def said(*, terminal: bool, served: bool = True, open_it: bool = False) -> str:
    talk = Console(file=io.StringIO(), force_terminal=terminal, no_color=True, width=80)
    dev_command._show_console(talk, ENVIRONMENT, served=served, open_it=open_it)

    return talk.file.getvalue()


def test_the_token_is_in_the_fragment_and_not_in_the_query():
    assert console_url(ENVIRONMENT) == ADDRESS


def test_a_terminal_shows_the_whole_address_on_one_line(opened):
    assert f"open {ADDRESS}\n" in said(terminal=True)
    assert opened == []


def test_a_file_gets_no_token():
    assert said(terminal=False) == "open http://127.0.0.1:18080/console\n"


def test_open_opens_it_with_the_token(opened):
    shown = said(terminal=False, open_it=True)

    assert opened == [ADDRESS]
    assert TOKEN not in shown


def test_without_a_browser_it_says_so(monkeypatch):
    monkeypatch.setattr(dev_command.webbrowser, "open", lambda url: False)

    assert "there is no browser here" in said(terminal=False, open_it=True)


def test_a_console_that_is_off_is_not_opened(opened):
    shown = said(terminal=True, served=False, open_it=True)

    assert "EVERBUS_EDGE_CONSOLE" in shown
    assert opened == []
