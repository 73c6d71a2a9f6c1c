#!/bin/sh
# Run a command of this project in a virtual environment, which is created if it does not exist.
#
#   sh scripts/with_venv.sh EXTRAS COMMAND...     EXTRAS: extras of setup.cfg, "" for none
#
# The environment is .venv in the project's folder, or $VENV; the interpreter is python3, or $PYTHON.
set -eu
if [ $# -lt 2 ]; then
    echo "usage: sh scripts/with_venv.sh EXTRAS COMMAND..., for example: sh scripts/with_venv.sh \"\" retinanet-jax configs" >&2
    exit 2
fi
extras=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$python" --version) is too old; Python 3.11 or newer is needed: set PYTHON to its path." >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    echo "creating $venv: about 2.4 GB of packages, only the first time" >&2
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}"
PATH=$venv/bin:$PATH
export PATH
exec "$@"
