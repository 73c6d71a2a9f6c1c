#!/bin/sh
# Runs a command of this project in a virtual environment that it makes where there is none.
#
#   sh scripts/with_venv.sh EXTRAS COMMAND...     EXTRAS: of setup.cfg ("" for none, test, dev, cuda, tpu)
#
# The environment is .venv beside this folder, or $VENV; the interpreter is python3, or $PYTHON.
set -eu
extras=$1
shift
root=$(cd "$(dirname "$0")/.." && pwd)
venv=${VENV:-$root/.venv}
python=${PYTHON:-python3}

if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: $("$python" --version) is too old; Python 3.11 or newer is needed (PYTHON=... names one)." >&2
    exit 1
fi
if [ ! -x "$venv/bin/python" ]; then
    echo "making $venv, once: some 2.4 GB of packages, minutes on a slow line" >&2
    "$python" -m venv "$venv"
fi
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root${extras:+[$extras]}"
PATH=$venv/bin:$PATH
export PATH
exec "$@"
