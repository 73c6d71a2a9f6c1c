"""The examples in the docstrings of `core` run and print what they show."""

import doctest
import importlib
import pkgutil

import pytest

from retinanet_jax import core

MODULES = [f"{core.__name__}.{module.name}" for module in pkgutil.iter_modules(core.__path__)]


def examples():
    """Return the docstrings of `core` that contain examples."""
    finder = doctest.DocTestFinder(exclude_empty=True)
    tests = [test for name in MODULES for test in finder.find(importlib.import_module(name))]
    return [test for test in tests if test.examples]


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.name)
def test_an_example_prints_what_it_shows(example):
    report = []
    doctest.DocTestRunner(verbose=False).run(example, out=report.append)
    assert not report, "".join(report)


@pytest.mark.parametrize("function", [core.focal_loss, core.assign_targets, core.detect])
def test_the_main_functions_have_an_example(function):
    assert f"{function.__module__}.{function.__qualname__}" in {test.name for test in examples()}
