"""
The names that a MAD's author imports.
"""

from importlib.metadata import version

import pytest

import everbus
from everbus import bus


def test_the_package_knows_its_version():
    assert everbus.__version__ == version("everbus")


def test_a_name_that_does_not_exist_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        everbus.nothing  # noqa: B018 - the access is the point


def test_every_public_name_is_there_under_both_packages():
    assert all(getattr(everbus, name) is getattr(bus, name) for name in bus.__all__)
