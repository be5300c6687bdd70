#!/usr/bin/env bash
# Set-up and the tests; no GPU needed.
#
#   ./run_tests.sh                                          all of them
#   ./run_tests.sh --quick                                  no training, no set-up, nothing costly
#   ./run_tests.sh tests/generation/test_tokenization.py    arguments go to pytest
set -euo pipefail
cd "$(dirname "$0")"
./setup.sh
unset PYTHON  # it chose the Python of .venv, which runs all that follows
[[ ${1-} != --quick ]] || set -- -m "not slow" "${@:2}"
exec .venv/bin/python -m pytest "$@"
