#!/usr/bin/env bash
# Take out of an environment what nothing here runs: packages' own tests and headers, compiled files, Arrow's Flight.
set -euo pipefail
site="$(find "$1" -type d -name pyarrow -prune -exec dirname {} \; | head -n 1)"
[ -d "$site" ] || { echo "slim: no pyarrow below $1" >&2; exit 1; }
rm -rf "$site"/pyarrow/{include,tests,src} "$site"/pyarrow/{_flight,libarrow_flight,libarrow_python_flight}*.so*
find "$site"/numpy "$site"/sympy -type d -name tests -prune -exec rm -rf {} +
find "$1" -type d -name __pycache__ -prune -exec rm -rf {} +
