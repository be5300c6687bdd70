#!/usr/bin/env bash
# Makes .venv with everything in requirements.txt, frozen by constraints.txt (3 minutes, 9 GB). A second call does nothing;
# an interrupted or outdated set-up is made anew.
#
#   ./setup.sh && source .venv/bin/activate
#   PYTHON=/opt/python3.11/bin/python3 ./setup.sh     # another Python
set -euo pipefail
cd "$(dirname "$0")"

NEEDED_GB=12  # 9 installed, the rest for pip's downloads

fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# Python 3.11 alone fits: numpy 2.4 needs 3.11 or newer, and tokenisation is defined by its Unicode tables (14.0).
find_python() {
  local candidate found=()
  for candidate in ${PYTHON:-python3.11 python3 python}; do
    local version
    version=$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || continue
    # Inside an active environment, the Python that it was made from: .venv itself may be about to go.
    if [[ $version == 3.11 ]]; then "$candidate" -c 'import sys; print(sys._base_executable)'; return; fi
    found+=("$candidate is $version")
  done
  fail "Python 3.11 is needed (its Unicode tables define the data); found: ${found[*]:-no Python at all}.
       Install it (apt install python3.11 python3.11-venv; conda create -n py311 python=3.11; uv python install 3.11)
       or name it: PYTHON=/path/to/python3.11 ./setup.sh"
}

stamp=.venv/set-up-complete
wanted=$(cat requirements.txt constraints.txt setup.sh | sha256sum | cut -c1-64)\ $PWD
is_complete() { [[ -f $stamp && $(cat "$stamp") == "$wanted" ]] && .venv/bin/python -c '' 2>/dev/null; }

exec 9> .venv.lock
flock -n 9 || { echo "another set-up is running here; waiting for it"; flock 9; }
if is_complete; then exit 0; fi

[[ $(uname -s) == Linux ]] || fail "Linux is needed (NVIDIA DALI); this is $(uname -s)"
python=$(find_python)
free_gb=$(df --output=avail -BG . | tail -n 1 | tr -dc 0-9)
if [[ -d .venv ]]; then (( free_gb += $(du -s -BG .venv | tr -dc 0-9) )); fi  # it is removed first
(( free_gb >= NEEDED_GB )) || fail "$PWD: $free_gb GB free, $NEEDED_GB GB are needed; free some, or clone to another disk"
"$python" -c 'import ensurepip, venv' 2>/dev/null ||
  fail "$("$python" --version) at $(command -v "$python") has no venv module; install it: apt install python3.11-venv"

echo "setting up .venv with $("$python" --version): 3 minutes, 9 GB"
rm -rf .venv
"$python" -m venv .venv
# Without these, an active environment's paths would reach into the new one.
unset PYTHONPATH PYTHONHOME
.venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade "$(grep '^pip==' constraints.txt)"
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt -c constraints.txt
.venv/bin/python -m pip check > /dev/null || fail "the installed packages contradict each other: .venv/bin/python -m pip check"
printf '%s' "$wanted" > "$stamp.tmp" && mv "$stamp.tmp" "$stamp"
echo "set up: source .venv/bin/activate"
