"""
What `pip install` gives a user: one package, beside whatever the user has.

The wheel is built from the sdist, as an index's users get it, and installed into an
environment that sees the dependencies of this one, but none of its `.pth` files: the
repository itself is not on its path.
"""

import os
import subprocess
import sys
import tarfile
import venv
import zipfile
from pathlib import Path
from typing import NamedTuple

import pytest

pytestmark = pytest.mark.timeout(120)

HOUSE = Path(__file__).parents[2]
ROOMS = ("archiver", "bus", "compose", "gateway", "handlers")
CONSOLE = "gateway/edge/console/assets"
EXTRAS = (
    *("boto3", "fastapi", "jwt", "motor", "opentelemetry", "prometheus_client"),
    *("pymongo", "rich", "starlette", "typer", "uvicorn", "uvloop", "websockets"),
)
# The installed program, on an interpreter that has no module of the extra `server`.
WITHOUT_EXTRAS = f"import sys; sys.modules |= dict.fromkeys({EXTRAS})\n"


class Installation(NamedTuple):
    """
    A fresh environment, and a folder of the user's own to work in.
    """

    folder: Path
    project: Path

    def run(self, *command: str, **extra: str) -> subprocess.CompletedProcess[str]:
        """
        Run one of the environment's programs in the user's folder.
        """
        environment = {
            "HOME": str(self.folder),
            "PATH": f"{self.folder / 'bin'}:{os.defpath}",
            "TERM": "dumb",
            **extra,
        }
        return subprocess.run(
            (str(self.folder / "bin" / command[0]), *command[1:]),
            cwd=self.project,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )

    def said(self, program: str) -> str:
        """
        What a script of the user's prints.
        """
        (self.project / "main.py").write_text(program)
        ended = self.run("python", "main.py")
        assert ended.returncode == 0, ended.stderr

        return ended.stdout.strip()


def build(target: str, source: Path, into: Path) -> Path:
    python = (sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(into))
    subprocess.run(python, cwd=source, check=True, capture_output=True)
    [built] = into.iterdir()

    return built


def install(folder: Path, *what: str) -> Installation:
    """
    Install *what* into a fresh environment beside names that everbus uses inside.
    """
    venv.create(folder / "env", with_pip=False, symlinks=True)
    [packages] = (folder / "env").glob("lib/python*/site-packages")
    known = [path for path in sys.path if path.endswith("site-packages")]
    # Plain lines: Python does not follow the .pth files in those folders.
    (packages / "dependencies.pth").write_text("\n".join(known))
    pip = (sys.executable, "-m", "pip", "--python", f"{folder}/env/bin/python")
    options = ("--no-deps", "--no-index", "--no-build-isolation", "--force-reinstall")
    subprocess.run(
        (*pip, "install", "--quiet", "--disable-pip-version-check", *options, *what),
        check=True,
        capture_output=True,
    )
    project = folder / "project"
    (project / "gateway").mkdir(parents=True)
    (project / "compose").mkdir()
    (project / "bus.py").write_text("OWNER = 'the user'\n")
    (project / "gateway" / "__init__.py").write_text("OWNER = 'the user'\n")
    (project / "compose" / "__init__.py").write_text("OWNER = 'the user'\n")

    return Installation(folder / "env", project)


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    return build("sdist", HOUSE, tmp_path_factory.mktemp("sdist"))


@pytest.fixture(scope="module")
def wheel(sdist, tmp_path_factory):
    unpacked = tmp_path_factory.mktemp("unpacked")
    with tarfile.open(sdist) as archive:
        archive.extractall(unpacked, filter="data")
    [source] = unpacked.iterdir()

    return build("wheel", source, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    return install(tmp_path_factory.mktemp("installed"), str(wheel))


@pytest.fixture(scope="module")
def editable(tmp_path_factory):
    return install(tmp_path_factory.mktemp("editable"), "--editable", str(HOUSE))


def test_the_wheel_holds_one_package_and_no_deploy_files(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    others = {
        name
        for name in names
        if not name.endswith((".py", ".lua")) and f"/{CONSOLE}/" not in name
    }

    tops = {name.partition("/")[0] for name in names}
    assert len(tops) == 2
    assert "everbus" in tops
    assert {name for name in others if ".dist-info/" not in name} == {
        "everbus/py.typed"
    }


def test_the_wheel_holds_every_module_and_script_of_the_repository(wheel):
    packed = {name for name in zipfile.ZipFile(wheel).namelist() if "/" in name}
    wanted = {
        f"everbus/{path.relative_to(HOUSE)}"
        for room in ROOMS
        for kind in ("py", "lua")
        for path in (HOUSE / room).rglob(f"*.{kind}")
        if not any(part.startswith(".") for part in path.relative_to(HOUSE).parts)
    }

    assert len(wanted) > 200
    assert wanted <= packed


def test_an_installed_edge_has_the_assets_of_its_console(installed, sdist):
    there = {path.name for path in (HOUSE / CONSOLE).iterdir()}
    said = installed.said(
        "from everbus.gateway.edge.console.routes import packaged_assets\n"
        "print(*packaged_assets())\n"
    )
    with tarfile.open(sdist) as archive:
        packed = [name for name in archive.getnames() if f"/everbus/{CONSOLE}/" in name]

    assert {"index.html", "app.js", "console.css"} <= there
    assert set(said.split()) == there
    assert {name.rpartition("/")[2] for name in packed} == there


def test_names_of_the_users_own_stay_the_users_own(installed):
    said = installed.said(
        "import bus, compose, gateway\n"
        "import everbus, everbus.bus, everbus.compose, everbus.gateway\n"
        "from everbus import connect\n"
        "print(bus.OWNER, gateway.OWNER, compose.OWNER, sep=', ')\n"
        "print(connect.__name__, everbus.__file__)\n"
    )

    owners, ours = said.splitlines()
    assert owners == "the user, the user, the user"
    assert ours.startswith(f"connect {installed.folder}/")


def test_no_second_top_level_name_is_installed(installed):
    said = installed.said(
        "import importlib.util as found, os, sys\n"
        "sys.path.remove(os.path.dirname(os.path.abspath(__file__)))\n"
        f"print([name for name in {ROOMS} if found.find_spec(name)])\n"
    )

    assert said == "[]"


def test_the_command_works_in_a_folder_with_such_names(installed):
    version = installed.run("everbus", "--version")
    explained = installed.run("everbus", "explain", "version_conflict")

    assert (version.returncode, version.stdout) == (0, "everbus 0.1.0\n")
    assert explained.returncode == 0
    assert "HTTP 409" in explained.stdout


def test_scripts_for_redis_are_found_where_they_were_installed(installed):
    said = installed.said(
        "from everbus.gateway.store.scripts import script\n"
        "print(script('commit', ['key'])[0])\n"
    )

    assert said == "EVALSHA"


def test_the_command_without_its_extra_names_it_in_one_line(installed):
    ended = installed.run(
        *("python", "-c", f"{WITHOUT_EXTRAS}from everbus.__main__ import main; main()")
    )

    assert ended.returncode == 2
    assert ended.stdout == ""
    assert ended.stderr.count("\n") == 1
    assert "typer is not installed" in ended.stderr
    assert "pip install 'everbus[server]'" in ended.stderr


def test_a_mad_needs_no_extra(installed):
    said = installed.said(
        f"{WITHOUT_EXTRAS}from everbus import connect\nprint(connect.__name__)\n"
    )

    assert said == "connect"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_shell_gets_a_completion(installed, shell):
    ended = installed.run(
        *("everbus", "--show-completion", shell),
        _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1",
    )

    assert ended.returncode == 0
    assert "_EVERBUS_COMPLETE" in ended.stdout


def test_the_completion_knows_the_commands(installed):
    ended = installed.run(
        "everbus",
        _EVERBUS_COMPLETE="complete_bash",
        COMP_WORDS="everbus ses",
        COMP_CWORD="1",
    )

    assert ended.stdout.split() == ["session"]


def test_an_editable_install_leads_to_the_repository(editable):
    said = editable.said(
        "import bus\n"
        "from everbus import connect\n"
        "import everbus.bus\n"
        "print(bus.OWNER, everbus.bus.__file__)\n"
    )

    assert said == f"the user {HOUSE / 'everbus' / 'bus' / '__init__.py'}"


@pytest.mark.parametrize("kind", ["installed", "editable"])
def test_a_strict_type_checker_knows_what_a_user_imports(kind, request):
    installation = request.getfixturevalue(kind)
    (installation.project / "typed.py").write_text(
        "from typing import assert_type\n\n"
        "from everbus import Session, connect\n\n\n"
        "async def greet() -> Session:\n"
        "    async with connect(mad='fiedler') as mad:\n"
        "        session = await mad.get_or_create_session('ada')\n"
        "        assert_type(session.version, int)\n"
        "        return session\n"
    )

    ended = subprocess.run(
        (
            *(sys.executable, "-m", "mypy", "--strict", "--no-incremental"),
            *("--python-executable", str(installation.folder / "bin" / "python")),
            *("--config-file", os.devnull, "typed.py"),
        ),
        cwd=installation.project,
        capture_output=True,
        text=True,
        check=False,
    )

    assert ended.returncode == 0, ended.stdout
