"""Packages that only some features require, and that need not be installed for the others."""

import importlib
from typing import Any

from retinanet_jax.utils.progress import shorten


def import_optional(name: str, purpose: str, install: str, otherwise: str = "") -> Any:
    """Import a module where a feature requires it.

    Args:
        name: The module.
        purpose: What requires it, the subject of the error message.
        install: What pip installs: an extra, such as "retinanet-jax[onnx]", or a package.
        otherwise: What to do instead, the end of the error message.

    Raises:
        ValueError: If it cannot be imported; the message has the command that installs it.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        reason = shorten(str(error), 200)
        what = f"{package}, which cannot be imported ({reason})"
        raise not_installed(purpose, what, install, otherwise) from None


def not_installed(purpose: str, what: str, install: str, otherwise: str = "") -> ValueError:
    """Return the error of a feature that requires what is not installed.

    Args:
        purpose: As in `import_optional`.
        what: What it requires.
        install: As in `import_optional`.
        otherwise: As in `import_optional`.
    """
    alternative = f", or {otherwise}" if otherwise else ""
    return ValueError(f'{purpose} requires {what}; run `pip install "{install}"`{alternative}.')
